"""DINOv2 and CLIP as feature networks, through `transformers` (extra `features`).

    dinov2  224² antialiased bicubic -> class token after the final norm = pooled (FD-DINOv2)
    clip    224 by the shorter side, centre crop -> projected image embedding, not normalised = pooled
            (CLIP-FID, CMMD); `text` embeds prompts in the same space, for the CLIP score

Weights are a local folder in transformers' format or a Hub id, safetensors only, and no code from the
Hub is run. Images are prepared here in torch: transformers' own processors want torchvision.
Sources: Stein et al. 2023 and dgm-eval; Radford et al. 2021; Parmar et al. 2022; Hessel et al. 2021.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.device import full_float32
from ditkit.errors import InputError
from ditkit.evaluation.networks.features import Features
from ditkit.evaluation.networks.frozen import Frozen
from ditkit.evaluation.networks.resize import RESIZES
from ditkit.files import fetch_folder, file_hash, quiet_transformers
from ditkit.records import parse_json
from ditkit.text.encoders import check_tokens

DINOV2 = "facebook/dinov2-large"
CLIP = "openai/clip-vit-large-patch14"

FILES = ["*.json", "merges.txt", "model.safetensors", "model-*-of-*.safetensors"]


class Dinov2(Frozen):
    """uint8 images -> pooled (N, width), 1024 for the large model."""

    name = "dinov2"
    model: Any
    side = 224
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.dim = self.maps_dim = self.model.config.hidden_size
        self.resize = f"{RESIZES['clean'].words} to {self.side}x{self.side}"
        embeddings = self.model.embeddings
        places = dinov2_positions(embeddings.position_embeddings, self.side // self.model.config.patch_size)
        embeddings.position_embeddings = nn.Parameter(places)

    def read(self, pixels: Tensor) -> Features:
        return Features(self._tokens(pixels)[:, 0])

    def maps(self, pixels: Tensor) -> Tensor:
        """(N, width, 16, 16) of patches of 14 pixels."""
        side = self.side // self.model.config.patch_size
        return self._tokens(pixels)[:, -(side**2) :].mT.unflatten(2, (side, side))

    def _tokens(self, pixels: Tensor) -> Tensor:
        x = normalise(RESIZES["clean"].call(pixels, self.side), self.mean, self.std)
        return self.model(pixel_values=x).last_hidden_state


def dinov2_positions(table: Tensor, side: int) -> Tensor:
    """Position embeddings (1, 1 + S², D), class token first, bicubically resampled to (1, 1 + side², D).

    The scale is (side + 0.1) / S, as in Meta's own code, whose features FD-DINOv2 is published with.
    `transformers` resamples with side / S, which moves the last patch by a fifth of a cell.
    """
    old = round((table.shape[1] - 1) ** 0.5)
    if old == side:
        return table
    grid = table[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)  # (1, D, S, S)
    grid = F.interpolate(grid, scale_factor=(side + 0.1) / old, mode="bicubic")
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class Clip(Frozen):
    """uint8 images -> pooled (N, D), 768 for the large model; `text` gives prompts in the same space."""

    name = "clip"
    model: Any
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, model: nn.Module, tokenizer: Any):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.dim = self.model.config.projection_dim
        self.side = self.model.config.vision_config.image_size
        self.resize = f"{RESIZES['clip'].words} to {self.side}x{self.side}"

    def read(self, pixels: Tensor) -> Features:
        # Differs: CLIP's own preparation rounds the resized image to bytes, as Pillow gives it.
        x = normalise(RESIZES["clip"].call(pixels, self.side), self.mean, self.std)
        return Features(self.model.visual_projection(self.model.vision_model(pixel_values=x).pooler_output))

    @torch.no_grad()
    @full_float32()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (N, D) of unit length, float32 on the CPU; what exceeds 77 tokens is cut off. InputError where the
        tokenizer is not the network's.

        The CLIP score of an image is the cosine of its pooled features with its prompt's row.
        """
        length = self.model.config.text_config.max_position_embeddings
        words = self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        check_tokens(words.input_ids, self.model.text_model, self.name)
        # Attention is causal and the end token is read, so the padding after it needs no mask.
        device = self.model.logit_scale.device
        with torch.autocast(device.type, enabled=False):
            read = self.model.text_model(input_ids=words.input_ids.to(device)).pooler_output
            return F.normalize(self.model.text_projection(read), dim=-1).cpu()


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(p / 255 - mean) / std per channel."""
    centre, spread = (pixels.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    return (pixels / 255 - centre) / spread


def load_dinov2(source: str | Path | None = None) -> Dinov2:
    """DINOv2 from a folder or a Hub id; InputError when it is not there or not a DINOv2."""
    folder = _folder(source or DINOV2, "dinov2")
    from transformers import Dinov2Model

    return Dinov2(_load(Dinov2Model, folder)).freeze(_hash(folder))


def load_clip(source: str | Path | None = None) -> Clip:
    """CLIP with both towers and its tokenizer, from a folder or a Hub id; InputError as above."""
    folder = _folder(source or CLIP, "clip")
    from transformers import CLIPModel, CLIPTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(f"{folder}: no tokenizer; add tokenizer.json, or vocab.json and merges.txt")
    tokenizer = _from_pretrained(CLIPTokenizer, folder)
    return Clip(_load(CLIPModel, folder), tokenizer).freeze(_hash(folder))


def _folder(source: str | Path, kind: str) -> Path:
    """The local folder of a model, fetched from the Hub if need be, and checked to be of this kind."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise InputError(f"the {kind} features need transformers: pip install 'ditkit[features]'") from None
    folder = Path(source)
    if not folder.is_dir():
        remedy = f"give a local folder in transformers' format: `features` {kind}=FOLDER"
        folder = fetch_folder(str(source), FILES, remedy)
    try:
        found = parse_json((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}: no readable config.json of a {kind} model of transformers") from error
    if found != kind:
        raise InputError(f"{folder}: a model of type {found!r} where {kind!r} is asked for")
    return folder


def _weights(folder: Path) -> list[Path]:
    one = folder / "model.safetensors"
    files = [one] if one.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no model.safetensors; pickled weights are not read")
    return files


def _hash(folder: Path) -> str:
    return file_hash(*_weights(folder))


def _load(kind: Any, folder: Path) -> nn.Module:
    """The model of a folder in float32; InputError unless every weight of it is in the file."""
    _weights(folder)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        model, report = _from_pretrained(kind, folder, use_safetensors=True, output_loading_info=True)
    if report["missing_keys"]:  # transformers would go on with random ones
        missing = sorted(report["missing_keys"])
        raise InputError(f"{folder}: {len(missing)} weights are missing, {missing[0]} among them")
    return model.float()


def _from_pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # transformers raises many kinds; each means that the folder does not fit
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder}: cannot be loaded as {kind.__name__} ({reason})") from error
