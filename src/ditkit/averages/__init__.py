"""Averages of the weights over a training: how much of each the newest weights get.

def mine(batch, seen, *, images: float = 1000.0):
    "One line for `ditkit list averages`."
    return min(1.0, batch / images)
"""

from collections.abc import Sequence
from typing import Any

from ditkit.chosen import split
from ditkit.lazy import Named

AVERAGES: dict[str, Any] = {
    "half_life": Named("ditkit.averages.profiles:half_life"),
    "power": Named("ditkit.averages.profiles:power"),
}
"""(images of a step, images seen after it, *, settings) -> the share of the new weights in the average, in [0, 1]."""

WIDTH = 0.1
"""Of a power average, where none is given."""


def same_average(one: str, other: str) -> bool:
    """Whether two choices are the same one, however their numbers are written. ValueError as of `split`."""
    return split(AVERAGES, one) == split(AVERAGES, other)


def power_widths(choices: Sequence[str]) -> dict[int, float]:
    """The widths of those choices that are power averages, by their places."""
    found = ((place, *split(AVERAGES, choice)) for place, choice in enumerate(choices))
    return {place: settings.get("width", WIDTH) for place, name, settings in found if name == "power"}


__all__ = ["AVERAGES", "WIDTH", "power_widths", "same_average"]
