"""A run's folder and the recipe that owns it: recipe.json, or of an autoencoder's training, its settings."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ditkit.config import Section, read_section, write_section
from ditkit.data import Source
from ditkit.errors import InputError
from ditkit.records import read_json
from ditkit.training.data import check_data, write_lines
from ditkit.training.log import read_log

if TYPE_CHECKING:  # they are made of what is here
    from ditkit.recipe import Recipe
    from ditkit.training.codec import CodecRecipe

Settings = TypeVar("Settings", "Recipe", "CodecRecipe")

RECIPE = "recipe.json"

# What may change between two sittings of one run: it decides how far and how, not what is learned.
MAY_CHANGE = {
    "data": {"names", "content", "changed", "cache"},  # the first two are compared by `check_data`
    "train": {
        "images",
        "log_images",
        "preview_images",
        "validate_images",
        "score_images",
        "score_samples",
        "score_features",
        "checkpoint_images",
        "snapshot_images",
        "keep",
        "max_minutes",
        "on_divergence",
        "workers",
        "track",
        "micro_batch",
        "checkpoint_blocks",
        "parallel",
        "shard_size",
        "compile",
        "latents",
        "texts",
    },
    "sample": {"sampler", "steps", "guidance", "guidance_path", "interval"},
}


def check_run(settings: Settings, out: Path, source: Source, name: str = RECIPE) -> None:
    """InputError when `out` belongs to another recipe, naming the first field that differs, was made of other images
    than those of `source`, or holds something else. Writes nothing but which changes were accepted.

    A run that stopped before its first line and checkpoint leaves nothing to mix with: the remedy for what stopped it
    may be another flag.
    """
    file = out / name
    if file.exists():
        if not read_log(out / "log.jsonl") and not any((out / "checkpoints").glob("*")):
            return
        before: Any = read_section(type(settings), file)
        difference = first_difference(before, settings)
        if difference and difference[0] == "data.classes":
            check_data(before.data, settings.data, source, out)  # which says more
        if difference:
            field, before, now = difference
            raise InputError(
                f"{out} was made with {field} {before}, not {now}; give the same flags to resume it, or "
                "another `out`"
            )
        check_data(before.data, settings.data, source, out)
    elif out.exists() and any(_is_content(path) for path in out.iterdir()):
        raise InputError(f"{out} is not empty and holds no {name}; give another `out`")


def _is_content(path: Path) -> bool:
    """Whether something in a folder is not what a run that was stopped while it began left there: a lock, an unfinished
    file, an empty folder."""
    return path.name[0] != "." and not (path.is_dir() and not any(path.iterdir()))


def claim_run(settings: "Recipe | CodecRecipe", out: Path, source: Source, name: str = RECIPE) -> None:
    """Make the folder and write the settings and the list of images into it; InputError when that is not possible."""
    try:
        (out / "previews").mkdir(parents=True, exist_ok=True)
        write_section(settings, out / name)
        write_lines(source, out)
    except OSError as error:
        raise InputError(f"`out` {out}: cannot be written ({error.strerror})") from None


def was_compiled(out: Path) -> bool:
    """Whether the run's steps were compiled, by its recipe as version 0.1 wrote it; of later versions its checkpoints say
    so."""
    return read_json(out / RECIPE)["train"].get("compile") in (True, "on")


def first_difference(
    old: Section, new: Section, but: Mapping[str, Collection[str]] = MAY_CHANGE
) -> tuple[str, object, object] | None:
    """The first field whose values differ, with both; those of `but`, by section, and at "" those outside sections, may."""
    before, now = old.model_dump(mode="json"), new.model_dump(mode="json")
    for section, value in before.items():
        if not isinstance(value, dict) or not isinstance(now[section], dict):
            if value != now[section] and section not in but.get("", ()):
                return section, value, now[section]
            continue
        for field in [*value, *(name for name in now[section] if name not in value)]:
            if field in but.get(section, ()):
                continue
            if value.get(field) != now[section].get(field):
                return f"{section}.{field}", value.get(field), now[section].get(field)
    return None
