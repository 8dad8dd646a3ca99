"""What figures of several studies share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from ditkit.plots import DPI, logarithmic


class Line(NamedTuple):
    """One training's scores."""

    name: str
    """Of what is trained; lines of one name share a colour and an entry of the legend."""
    frechet: Mapping[int, float]
    """By training images."""
    style: str = "o-"


def frechet_by_training(lines: Sequence[Line], path: Path) -> None:
    """Fréchet distance over training images, a line for each seed."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(line.name for line in lines))
    seen: set[str] = set()
    for line in lines:
        label = None if line.name in seen else line.name
        seen.add(line.name)
        axes.plot(
            [images / 1000 for images in line.frechet],
            list(line.frechet.values()),
            line.style,
            color=f"C{names.index(line.name)}",
            label=label,
        )
    axes.set(xlabel="thousand training images", ylabel="Fréchet distance", title="a line for each seed")
    logarithmic(axes)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=DPI)
