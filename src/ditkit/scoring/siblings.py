"""Trainings of one recipe that differ in their seed, summed up: means and spreads of their scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from ditkit.evaluation import Scores
from ditkit.scoring.comparison import Row
from ditkit.scoring.tables import COLUMNS


@dataclass(frozen=True)
class Spread:
    """Of one score over trainings."""

    mean: float
    deviation: float | None
    """The standard deviation of a training, with n - 1 below; None of one alone."""


@dataclass(frozen=True)
class Group:
    """One or several trainings of a recipe, scored alike."""

    model: str
    rows: Sequence[Row]
    """One of each training."""

    @property
    def scores(self) -> dict[str, Spread]:
        """By name; what one of them lacks is left out."""
        found = [numbers(row.scores) for row in self.rows]
        names = [name for name in found[0] if all(name in other for other in found)]
        return {name: spread_of([some[name] for some in found]) for name in names}

    @property
    def evaluations(self) -> float:
        """The mean number of evaluations of the network for an image."""
        return fmean(row.cell.report.protocol["nfe"] for row in self.rows)


def groups_of(rows: Sequence[Row], group_of: Mapping[str, str]) -> list[Group]:
    """The rows of models that have the same name in `group_of`, row by row: the first of each, the second, ...; models that
    are not in it stand alone."""
    members: dict[tuple[bool, str], dict[str, list[Row]]] = {}
    for row in rows:
        model = row.cell.model
        key = (
            (True, group_of[model]) if model in group_of else (False, model)
        )  # a model may be called as a group
        members.setdefault(key, {}).setdefault(model, []).append(row)
    return [
        Group(name, some) for (_, name), mine in members.items() for some in zip(*mine.values(), strict=True)
    ]


def numbers(scores: Scores) -> dict[str, float]:
    """The scores that there are, class accuracy among them."""
    found = {name: getattr(scores, name) for name in COLUMNS}
    found["accuracy"] = scores.labels.accuracy if scores.labels else None
    return {name: value for name, value in found.items() if value is not None}


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and standard deviation."""
    several = len(values) > 1 and all(map(math.isfinite, values))
    return Spread(fmean(values), stdev(values) if several else None)
