"""What figures of several studies share."""

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ditkit.pictures import grid
from ditkit.plots import logarithmic, save_figure


class Line(NamedTuple):
    """One training's scores."""

    name: str
    """Of what is trained; lines of one name share a colour and a line of the legend."""
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
    save_figure(figure, path)


def as_text(images: Tensor, columns: int) -> str:
    """Samples (N, C, H, W), uint8, as a cell's record keeps them: rows of `columns` images without gaps, a PNG in base64."""
    picture = BytesIO()
    grid(images, columns, gap=0, scale=1).save(picture, "PNG")
    return b64encode(picture.getvalue()).decode()


def from_text(text: str, side: int) -> Tensor:
    """The square images of `as_text`, (N, 3, side, side), row by row."""
    pixels = torch.from_numpy(np.array(Image.open(BytesIO(b64decode(text))))).permute(2, 0, 1)
    return pixels.unflatten(1, (-1, side)).unflatten(3, (-1, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)


def solver_table(solvers: Sequence[Mapping[str, Any]], distance: str, shares: Sequence[str]) -> list[str]:
    """Lines of Markdown about one network's samples by several solvers: the Fréchet distance, called `distance`, its paired
    difference to the first's, and shares by their names in the records; no lines where there is no other solver."""
    if not solvers:
        return []
    first = solvers[0]["frechet"]
    return [
        "",
        f"| sampler, steps | {distance} | to the first | {' | '.join(shares)} |",
        "|" + "---|" * (3 + len(shares)),
        *(
            f"| {each['sampler']}, {each['steps']} | {each['frechet']:.2f} | {each['frechet'] - first:+.3f} ± "
            f"{each['error']:.3f} | {' | '.join(f'{each[share]:.1%}' for share in shares)} |"
            for each in solvers
        ),
    ]
