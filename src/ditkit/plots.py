"""Curves people look at: losses and scores of a run, trade-offs of several models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ditkit.records import written_whole

DPI = 120


def save_figure(figure: Figure, path: Path) -> None:
    """The figure as a picture, written whole."""
    with written_whole(path) as place:
        figure.savefig(place, dpi=DPI)


def loss_curve(rows: Sequence[dict], path: Path, title: str) -> None:
    """The smoothed training loss over images seen, from the rows of log.jsonl."""
    rows = [row for row in rows if np.isfinite(row["loss"])]
    if not rows:
        return
    loss = np.array([row["loss"] for row in rows])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(_thousands(rows), loss, color="0.8", linewidth=0.8, label="mean since the last line")
    alone = "o" if len(rows) == 1 else None  # a line needs two points to be seen
    axes.plot(_thousands(rows), _smooth(loss), color="tab:blue", marker=alone, label="moving average")
    axes.set(xlabel="thousand images seen", ylabel="training loss", title=title)
    if loss.min() > 0 and loss.max() > 3 * loss.min():
        logarithmic(axes)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def level_curves(rows: Sequence[dict], path: Path, title: str) -> None:
    """The validation loss at each time over images seen, from the rows of validation.jsonl."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    times = rows[-1]["t"]
    losses = np.array([row["levels"] for row in rows], float)  # None, no finite number, is nan
    for level, t in enumerate(times):
        shade = level / max(len(times) - 1, 1)
        axes.plot(
            _thousands(rows),
            losses[:, level],
            marker=".",
            color=(shade, 0.3, 1 - shade),
            label=f"t = {t:.2f}",
        )
    alone = "o" if len(rows) == 1 else None  # a line needs two points to be seen
    axes.plot(_thousands(rows), losses.mean(axis=1), color="black", linewidth=2, marker=alone, label="mean")
    axes.set(xlabel="thousand images seen", ylabel="validation loss", title=f"{title}: 0 is data, 1 is noise")
    logarithmic(axes)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    save_figure(figure, path)


def score_curves(rows: Sequence[dict], path: Path, title: str) -> None:
    """Fréchet distance, and class accuracy where it is known, from the rows of scores.jsonl."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        _thousands(rows), np.array([row["frechet"] for row in rows], float), marker="o", color="tab:blue"
    )
    axes.set(xlabel="thousand images seen", title=f"{title}: {rows[-1]['samples']:,} samples each time")
    axes.set_ylabel("Fréchet distance", color="tab:blue")
    logarithmic(axes)
    axes.grid(alpha=0.3)
    if all(row["accuracy"] is not None for row in rows):
        right = axes.twinx()
        right.plot(_thousands(rows), [row["accuracy"] for row in rows], marker="s", color="tab:orange")
        right.set_ylabel("class accuracy", color="tab:orange")
    save_figure(figure, path)


class Series(NamedTuple):
    """A model's scores along a dial that was turned."""

    name: str
    labels: list[str]
    """What the dial stood at, for each point."""
    values: dict[str, list[float]]
    """By the name of the score."""


TRADED = (
    ("class accuracy", None),
    ("recall", "precision"),
    ("CLIP score", None),
)  # across; up, or a distance


def trade_offs(series: Sequence[Series], path: Path) -> None:
    """Quality against diversity: distance over accuracy, precision over recall, distance over CLIP score,
    as far as the scores are there; a line for each model, its points labelled."""
    distance = next(iter(series[0].values))
    pairs = [(x, y or distance) for x, y in TRADED]
    pairs = [(x, y) for x, y in pairs if all(x in some.values and y in some.values for some in series)]
    figure = Figure(figsize=(5.5 * len(pairs), 4.5), layout="constrained")
    for axes, (x, y) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        for some in series:
            (line,) = axes.plot(some.values[x], some.values[y], marker="o", label=some.name)
            for label, *point in zip(some.labels, some.values[x], some.values[y], strict=True):
                axes.annotate(label, point, textcoords="offset points", xytext=(5, 5), color=line.get_color())
        axes.set(xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle("guidance scales")
    save_figure(figure, path)


def histograms(values: Mapping[str, Sequence[float]], what: str, path: Path) -> None:
    """How some sets of numbers are distributed, one over the other."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    edges = np.histogram_bin_edges(np.concatenate([list(each) for each in values.values()]), 30)
    for name, each in values.items():
        axes.hist(each, edges.tolist(), density=True, alpha=0.5, label=f"{name}, mean {np.mean(each):.3f}")
    axes.set(xlabel=what, ylabel="density")
    axes.legend()
    save_figure(figure, path)


def logarithmic(axes: Axes, name: Literal["x", "y"] = "y") -> None:
    """A logarithmic axis whose ticks are plain numbers; called when the data are in."""
    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = axis.get_data_interval()
    subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if high < 100 * low else (1, 2, 5)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _thousands(rows: Sequence[dict]) -> np.ndarray:
    return np.array([row["images"] for row in rows]) / 1000


def _smooth(values: np.ndarray) -> np.ndarray:
    """An exponential average that remembers about a 25th of the curve, unbiased at its start."""
    weight = max(0.0, 1 - 25 / len(values))
    smooth, total, norm = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        total, norm = weight * total + value, weight * norm + 1
        smooth[i] = total / norm
    return smooth
