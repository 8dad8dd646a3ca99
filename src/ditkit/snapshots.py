"""Models on disk: snapshots, runs, official files, the Hub's; read as a recipe, its weights and where they come from.

A snapshot is a folder with model.safetensors (the moving average) and recipe.json; some tiny trained ones come with the
package. A run's folder has recipe.json and checkpoints; low-rank additions (`train.lora`) are added to the weights when it is
read.
"""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditkit.checkpoint import Tensors, load_newest
from ditkit.errors import InputError, NotFinite
from ditkit.files import SNAPSHOTS, tensors_hash
from ditkit.hub import fetch, is_id
from ditkit.interop import Imported, Kind, read_foreign
from ditkit.nn.low_rank import merged
from ditkit.recipe import Recipe
from ditkit.records import parse_json


def own_folder(path: Path) -> Path | None:
    """The folder that holds recipe.json: the path itself, or the bundled snapshot of that name; None for neither."""
    return next((folder for folder in (path, SNAPSHOTS / path) if (folder / "recipe.json").exists()), None)


def read_model(path: Path, kind: Kind | None = None, heads: int | None = None) -> Imported:
    """What is at `path`; its arguments and errors are those of `ditkit.load`."""
    found = _found(path, kind, heads)
    check_finite(path, found.weights)
    return found


def check_finite(path: Path, weights: Tensors) -> None:
    """NotFinite, which is an InputError, unless all weights are finite numbers."""
    lost = next((name for name, value in weights.items() if not value.isfinite().all()), None)
    if lost is not None:
        raise NotFinite(
            f"{path}: its weights are not all finite numbers ({lost}); take an earlier checkpoint, or fetch or convert it again"
        )


def _found(path: Path, kind: Kind | None, heads: int | None) -> Imported:
    """The same, whatever its weights are."""
    folder = own_folder(path)
    if folder is None:
        foreign = read_foreign(path, kind, heads)
        if foreign is not None:
            return foreign
        if is_id(str(path)) and not path.exists():
            return _found(fetch(str(path)), kind, heads)
        if runs := sorted(file.parent for file in path.glob("*/recipe.json")):
            raise InputError(f"{path}: no run, but a folder of runs; name one of them, such as {runs[0]}")
        bundled = ", ".join(sorted(file.name for file in SNAPSHOTS.glob("*"))) or "none"
        raise InputError(
            f"{path}: no run or snapshot there (no recipe.json), nor a network of diffusers'; snapshots "
            f"that come with ditkit: {bundled}"
        )
    if kind is not None or heads is not None:
        raise InputError(f"{path}: `kind` and `heads` are for official files; its recipe.json says both")
    recipe = own_recipe(folder)
    if (folder / "model.safetensors").exists():
        return Imported(recipe, *_read_weights(folder / "model.safetensors"))
    record, parts = read_checkpoint(folder, recipe, ("ema",))
    return Imported(recipe, plain(recipe, parts["ema"]), record)


def own_recipe(folder: Path) -> Recipe:
    """The recipe of a run or a snapshot. InputError as of `Recipe.read`."""
    recipe = Recipe.read(folder / "recipe.json")
    if recipe.codec.kind == "vae" and (folder / "vae").is_dir():  # its own copy of a local autoencoder
        recipe = recipe.replace(codec={"id": str(folder / "vae")})
    return recipe


def read_checkpoint(run: Path, recipe: Recipe, parts: tuple[str, ...]) -> tuple[dict, dict[str, Tensors]]:
    """Of a run's newest intact checkpoint the images and minutes, and those parts. InputError where there is none."""
    newest = load_newest(run / "checkpoints", parts)
    if newest is None:
        raise InputError(f"{run}: this run has no checkpoint yet; train it first: ditkit train {recipe.name}")
    state, found = newest
    return {"images": state["images"], "minutes": round(state["seconds"] / 60, 2)}, found


def plain(recipe: Recipe, weights: Tensors) -> Tensors:
    """A run's weights as those of its network without additions."""
    return merged(weights, recipe.train.lora_scale) if recipe.train.lora else weights


def _read_weights(file: Path) -> tuple[dict[str, Tensor], dict]:
    try:
        with safe_open(file, "pt") as reader:
            metadata = reader.metadata() or {}
            record = parse_json(metadata.get("record", "{}"))
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    except PermissionError as error:
        raise InputError(f"{file} cannot be read ({error.strerror})") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error})") from None
    if metadata.get("sha256", known := tensors_hash(tensors)) != known:
        raise InputError(f"{file} is damaged: its tensors do not match their hash; convert or fetch it again")
    if not isinstance(record, dict):
        raise InputError(f"{file} is damaged: its record is no JSON object")
    return {name: value.float() for name, value in tensors.items()}, record
