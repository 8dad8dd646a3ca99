"""A run's folder and the recipe that owns it."""

from pathlib import Path

from ditkit.errors import InputError
from ditkit.recipe import Recipe

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
    },
    "sample": {"sampler", "steps", "guidance", "interval"},
}


def check_run(recipe: Recipe, out: Path) -> None:
    """InputError when `out` belongs to another recipe, naming the first field that differs, or holds
    something else. Writes nothing."""
    file = out / "recipe.json"
    if file.exists():
        difference = _first_difference(Recipe.read(file), recipe)
        if difference:
            field, before, now = difference
            raise InputError(
                f"{out} was made with {field} {before}, not {now}; give the same flags to resume it, or "
                "another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no recipe.json; give another --out")


def claim_run(recipe: Recipe, out: Path) -> None:
    """Make the folder and write recipe.json into it; InputError when that is not possible."""
    try:
        (out / "previews").mkdir(parents=True, exist_ok=True)
        recipe.write(out / "recipe.json")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None


def _first_difference(old: Recipe, new: Recipe) -> tuple[str, object, object] | None:
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
