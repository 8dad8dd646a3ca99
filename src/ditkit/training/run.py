"""A run's folder and the recipe that owns it: recipe.json, or of an autoencoder's training, its settings."""

from pathlib import Path

from ditkit.config import Section, read_section, write_section
from ditkit.errors import InputError
from ditkit.training.log import read_log

RECIPE = "recipe.json"

# What may change between two sittings of one run: it decides how far and how, not what is learned.
MAY_CHANGE = {
    "train": {
        "images",
        "log_images",
        "preview_images",
        "validate_images",
        "score_images",
        "score_samples",
        "score_features",
        "checkpoint_images",
        "keep",
        "workers",
        "micro_batch",
        "compile",
        "latents",
        "texts",
    },
    "sample": {"sampler", "steps", "guidance", "interval"},
}


def check_run(settings: Section, out: Path, name: str = RECIPE) -> None:
    """InputError when `out` belongs to another recipe, naming the first field that differs, or holds
    something else. Writes nothing.

    A run that stopped before its first line and checkpoint leaves nothing to mix with: the remedy for what stopped it
    may be another flag.
    """
    file = out / name
    if file.exists():
        if not read_log(out / "log.jsonl") and not any((out / "checkpoints").glob("*")):
            return
        difference = _first_difference(read_section(type(settings), file), settings)
        if difference:
            field, before, now = difference
            raise InputError(
                f"{out} was made with {field} {before}, not {now}; give the same flags to resume it, or "
                "another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no {name}; give another --out")


def claim_run(settings: Section, out: Path, name: str = RECIPE) -> None:
    """Make the folder and write the settings into it; InputError when that is not possible."""
    try:
        (out / "previews").mkdir(parents=True, exist_ok=True)
        write_section(settings, out / name)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None


def _first_difference(old: Section, new: Section) -> tuple[str, object, object] | None:
    before, now = old.model_dump(mode="json"), new.model_dump(mode="json")
    for section, value in before.items():
        if not isinstance(value, dict):
            if value != now[section]:
                return section, value, now[section]
            continue
        for field in value.keys() | now[section].keys():
            if field in MAY_CHANGE.get(section, ()):
                continue
            if value.get(field) != now[section].get(field):
                return f"{section}.{field}", value.get(field), now[section].get(field)
    return None
