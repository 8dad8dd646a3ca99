"""What a tracker is, and what it gets of a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "ditkit"
"""The project of all tracked runs, unless a tracker's own variable names another."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker sees it when it is opened, for the first time or again."""

    name: str
    folder: Path
    """OUT/track, for what a tracker writes beside the run; it exists."""
    settings: Mapping[str, Any]
    """The recipe, as in recipe.json."""
    id: str | None
    """The id of the tracked run that is resumed; None where it begins."""

    @property
    def parameters(self) -> dict[str, str | int | float | bool]:
        """The settings as fields and values, such as "train.lr": 0.0001; what is not set is left out."""
        return dict(_flat("", self.settings))


class Tracker(Protocol):
    """A tracked run that is open. Whatever goes wrong is raised as the package raises it."""

    id: str
    """By which it is opened again."""

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        """Numbers by their names, such as "train/loss", after so many images."""
        ...

    def picture(self, name: str, file: Path, images: int) -> None:
        """A PNG after so many images."""
        ...

    def close(self, failed: bool) -> None:
        """Send what is left."""
        ...


def _flat(name: str, value: Any) -> Iterator[tuple[str, str | int | float | bool]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(f"{name}.{key}" if name else key, part)
    elif isinstance(value, str | int | float | bool):
        yield name, value
    elif value is not None:
        yield name, str(value)
