"""Trainings that differ in their seed only: runs in one folder, OUT/seed-0, OUT/seed-1, ...

What such runs differ by is luck, so the spread of their scores says how much of a difference between two recipes is.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.training.run import MAY_CHANGE, RECIPE, first_difference

NAME = re.compile(r"seed-(\d+)")
OWN: Mapping[str, Collection[str]] = {"": {"name"}, "train": {"seed"}}
"""Fields that each sibling has for itself; those of the recipe itself stand at ""."""
HOW: Mapping[str, Collection[str]] = {
    "": {"name"},
    "data": {"changed", "cache"},
    "train": MAY_CHANGE["train"] - {"images"} | {"seed"},
}
"""Those, and fields that say how a training is watched and done, not what is learned."""


def sibling(recipe: Recipe, seed: int) -> Recipe:
    """The recipe of one of the siblings."""
    return recipe.replace(name=f"{recipe.name}-seed-{seed}", train={"seed": seed})


def sibling_folder(out: Path, seed: int) -> Path:
    """Its run's folder."""
    return out / f"seed-{seed}"


def sibling_runs(out: Path) -> list[Path]:
    """The runs of siblings in a folder, by seed; [] where it is another kind of folder."""
    if not out.is_dir() or (out / RECIPE).exists():
        return []
    found = [(int(name[1]), path) for path in out.iterdir() if (name := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if (path / RECIPE).exists()]


def same_training(recipe: Recipe) -> dict[str, Any]:
    """What siblings have in common, as JSON; of two other recipes it differs."""
    return {
        section: {field: part for field, part in value.items() if field not in HOW.get(section, ())}
        if isinstance(value, dict)
        else value
        for section, value in recipe.model_dump(mode="json").items()
        if section not in HOW[""]
    }


def check_sibling(recipe: Recipe, out: Path) -> None:
    """InputError where `out`, a folder of siblings' name, stands beside runs of another recipe."""
    beside = sibling_runs(out.parent) if NAME.fullmatch(out.name) else []
    for other in beside:
        difference = first_difference(Recipe.read(other / RECIPE), recipe, _but_seed())
        if difference:
            field, theirs, ours = difference
            raise InputError(
                f"{out.parent}: {other.name} was made with {field} {theirs}, not {ours}; siblings differ in their seed only: "
                "give the same flags, or another `out`"
            )


def check_siblings(out: Path) -> None:
    """InputError where the runs in a folder of siblings are of different recipes."""
    first, *others = sibling_runs(out)
    known = Recipe.read(first / RECIPE)
    for other in others:
        if difference := first_difference(known, Recipe.read(other / RECIPE), HOW):
            field, before, now = difference
            remedy = (
                "train all of them to the same end, or name the runs to compare one by one"
                if field == "train.images"
                else "siblings differ in their seed only: name the runs to compare one by one"
            )
            raise InputError(
                f"{out}: {first.name} was made with {field} {before}, {other.name} with {now}; {remedy}"
            )


def _but_seed() -> dict[str, Collection[str]]:
    """What may differ between a run that begins or goes on and its siblings, which may be yet to go on."""
    sections = {*MAY_CHANGE, *OWN}
    return {section: {*MAY_CHANGE.get(section, ()), *OWN.get(section, ())} for section in sections}
