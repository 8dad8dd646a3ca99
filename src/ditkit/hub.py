"""Models on the Hugging Face Hub: fetched by id, published with a card that holds the whole protocol.

A published model is a snapshot, safetensors and JSON; nothing fetched is ever run.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ditkit.errors import InputError
from ditkit.files import fetch_folder, first_line
from ditkit.recipe import Recipe

WANTED = ("*.json", "model.safetensors", "transformer/*", "scheduler/*.json", "vae/*")
ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_id(name: str) -> bool:
    """Whether a name could be a model's id: OWNER/NAME."""
    return ID.fullmatch(name) is not None


def fetch(model: str) -> Path:
    """The local folder of a model on the Hub; InputError when it cannot be fetched."""
    return fetch_folder(model, WANTED, "give a run, a snapshot or the id of a model")


def publish(folder: Path, model: str, private: bool = False) -> str:
    """Upload a snapshot's folder as OWNER/NAME, made if need be; its address.

    InputError: not such an id, no connection, or not logged in (`hf auth login`).
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    if not is_id(model):
        raise InputError(f"{model!r} is not the id of a model on the Hub; give OWNER/NAME")
    try:
        api = HfApi()
        address = api.create_repo(model, exist_ok=True, private=private)
        api.upload_folder(repo_id=model, folder_path=folder)
    except (OSError, HFValidationError) as error:  # LocalTokenNotFoundError is an OSError, too
        raise InputError(f"{model}: cannot be published ({first_line(error)}); try `hf auth login`") from None
    return str(address)


def model_card(recipe: Recipe, record: Mapping[str, Any], reports: Sequence[Mapping[str, Any]] = ()) -> str:
    """README.md of a snapshot: what the model is, how to use it, its scores with their protocols, and the
    recipe. `reports` are the contents of `report.json` files of `ditkit eval`."""
    data, sample = recipe.data, recipe.sample
    images = (
        f"{' x '.join(map(str, data.shape[-2:]))}, {data.channels} channels, {data.classes or 'no'} classes"
    )
    kind = "uint8 (2, C, H, W)"
    if data.bounds is not None:
        images += f", numbers from {data.bounds[0]:g} to {data.bounds[1]:g}"
        kind += "; numbers=True: float32 in the data's range"
    cond = '{"label": [0, 1]}' if data.classes else "{}"
    scores = "\n".join(f"- {report['card']}" for report in reports) or "None yet: `ditkit eval` makes them."
    known = ", ".join(f"{name} {value}" for name, value in record.items()) or "unknown"
    return f"""---
library_name: ditkit
tags: [diffusion, {recipe.backbone.kind}]
---

# {recipe.name}

{recipe.backbone.kind} on the {recipe.transport.path} path, predicts {recipe.transport.predict}. Images {images};
codec {recipe.codec.kind}; trained on {data.kind}, {recipe.train.images:,} images seen. Weights: {known}.

```python
import ditkit

pipe = ditkit.load("OWNER/NAME")  # or the folder
images = pipe.generate({cond}, seeds=[0, 1])  # {kind}
```

Samples best with {sample.sampler}, {sample.steps} steps, guidance {sample.guidance:g}.

## Scores

{scores}

## Recipe

```json
{recipe.model_dump_json(indent=1)}
```
"""
