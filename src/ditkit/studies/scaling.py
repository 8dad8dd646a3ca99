"""The DiT paper's central figure in miniature: does Fréchet distance follow the network's MACs?

Eleven DiTs (width and depth XS to L, patch 7, 4, 2: 2.7 to 291 MMACs) and a convolutional U-Net with as
many MACs as S/2 see the same images of Fashion-MNIST in the same order with the same noise, at one
constant learning rate, as in the paper (Peebles & Xie, 2023: figures 2, 8, 9 and 10). Three questions:

- Does a network with more MACs, whether from width, depth or more tokens, score better?
- Is a larger network the better use of training compute?
- Can a small network make up for its size by more sampling steps?

Command: ditkit study scaling. Cost: about two hours of two CPU cores with AMX, one thread and one process
each. What came out: docs/results.md.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import pearsonr, spearmanr

from ditkit.backbones import DiTConfig, UNetConfig
from ditkit.costs import recipe_cost
from ditkit.plots import logarithmic, save_figure
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.studies.cells import Cell, Point, Results

SIZES = {"XS": (64, 3, 2), "S": (96, 4, 3), "M": (128, 6, 4), "L": (192, 6, 6)}  # width, depth, heads
PATCHES = (2, 4, 7)
TOO_LARGE = {"L/2"}  # 560 MMACs: half of the whole study
BACKBONES = {
    f"{size}/{patch}": DiTConfig(width=width, depth=depth, heads=heads, patch=patch)
    for size, (width, depth, heads) in SIZES.items()
    for patch in PATCHES
    if f"{size}/{patch}" not in TOO_LARGE
} | {"UNet": UNetConfig(width=16, multipliers=(1, 3, 3), depth=2)}  # 116.7 MMACs; S/2 has 116.6

BUDGETS = (25_000, 50_000, 100_000)  # training images at which every network is scored
STEPS = (3, 5, 10, 25, 50)  # of Heun's method, two evaluations each
STANDARD = 25


def cells() -> dict[str, Cell]:
    """The largest first, so that processes that share them end together."""
    points = [Point(images=images, sampler="heun", steps=STANDARD) for images in BUDGETS]
    points += [Point(images=BUDGETS[-1], sampler="heun", steps=steps) for steps in STEPS if steps != STANDARD]
    train = {
        "images": BUDGETS[-1],
        "lr": 1e-3,
        "schedule": "constant",
        "checkpoint_images": 25_000,
        "preview_images": BUDGETS[-1],
    }
    base = recipe("fashion-sit").replace(train=train)
    found = {}
    for name, backbone in BACKBONES.items():
        # Blocks of a U-Net differ in shape: compiling each would take longer than it saves.
        compiled = {"compile": "off"} if backbone.kind == "UNet" else {}
        found[name.replace("/", "-")] = Cell(
            base.replace(name=f"scaling-{name}", backbone=backbone, train=compiled), tuple(points)
        )
    return dict(sorted(found.items(), key=lambda item: -recipe_cost(item[1].recipe).macs))


class Model(NamedTuple):
    """A finished cell, as the tables and plots want it."""

    name: str
    params: int
    macs: int
    frechet: Mapping[int, float]
    """By training images, at the standard number of steps."""
    by_nfe: Mapping[int, float]
    """Fréchet distance by evaluations, after the whole training."""
    accuracy: float
    images_per_second: float

    @property
    def final(self) -> float:
        return self.frechet[BUDGETS[-1]]


def report(results: Results, out: Path) -> str:
    """The table and what follows from it, as Markdown; draws the three figures into `out`."""
    models = sorted(_models(results), key=lambda model: model.macs)
    if not models:
        return "No cell is finished yet."
    dits = [model for model in models if model.name != "UNet"]
    _draw(models, out)
    lines = [
        "| model | parameters, M | MMACs | " + " | ".join(f"FD, {n // 1000}k images" for n in BUDGETS)
        + " | class accuracy | images/s |",
        "|" + "---|" * (5 + len(BUDGETS)),
    ]  # fmt: skip
    for model in models:
        distances = " | ".join(f"{model.frechet[images]:.2f}" for images in BUDGETS)
        lines.append(
            f"| {model.name} | {model.params / 1e6:.2f} | {model.macs / 1e6:.1f} | {distances} | "
            f"{model.accuracy:.1%} | {model.images_per_second:.0f} |"
        )
    return "\n".join([*lines, "", *_findings(dits)])


def _models(results: Results) -> Iterator[Model]:
    for name, record in results.items():
        if not record["finished"]:
            continue
        cost = recipe_cost(Recipe.recorded(record["recipe"], name))
        scores = list(record["scores"].values())
        standard = {row["images"]: row for row in scores if row["steps"] == STANDARD}
        last = [row for row in scores if row["images"] == BUDGETS[-1]]
        yield Model(
            name=name.replace("-", "/"),
            params=cost.params,
            macs=cost.macs,
            frechet={images: row["frechet"] for images, row in standard.items()},
            by_nfe={row["nfe"]: row["frechet"] for row in sorted(last, key=lambda row: row["nfe"])},
            accuracy=standard[BUDGETS[-1]]["accuracy"],
            images_per_second=record["images_per_second"],
        )


def _findings(dits: list[Model]) -> Iterator[str]:
    """The three questions, answered by numbers."""
    if len(dits) > 2:
        macs = np.log10([model.macs for model in dits])
        distances = np.array([model.final for model in dits])
        yield (
            f"Over the {len(dits)} DiTs, log MACs and FD: Pearson {pearsonr(macs, distances).statistic:.2f}; with log FD "
            f"{pearsonr(macs, np.log(distances)).statistic:.2f}; Spearman {spearmanr(macs, distances).statistic:.2f}. "
            "The paper has -0.93 over its twelve."
        )
    params = [model.params for model in dits]
    if len(dits) > 2:
        yield f"\nParameters and FD: Spearman {spearmanr(params, [model.final for model in dits]).statistic:.2f}."
    better = [(a, b) for a, b in combinations(dits, 2) if min(b.by_nfe.values()) < min(a.by_nfe.values())]
    cheaper = [(a, b) for a, b in better if _beats_at_most(a, b)]
    if better:
        yield (
            f"\nIn {len(cheaper)} of the {len(better)} pairs of DiTs whose larger network reaches the lower FD, it goes "
            "below the best that the smaller one reaches, at any number of steps, with no more sampling compute than "
            f"the smaller one's {max(dits[0].by_nfe)} evaluations."
        )


def _beats_at_most(small: Model, large: Model) -> bool:
    budget = small.macs * max(small.by_nfe)
    affordable = [distance for nfe, distance in large.by_nfe.items() if large.macs * nfe <= budget]
    return bool(affordable) and min(affordable) < min(small.by_nfe.values())


def _draw(models: list[Model], out: Path) -> None:
    dits = [model for model in models if model.name != "UNet"]
    shades = colormaps["viridis_r"](np.linspace(0.1, 1, len(dits)))  # the darker, the more MACs
    colours = {model.name: shade for model, shade in zip(dits, shades, strict=True)} | {"UNet": "red"}

    figure, axes = _figure(
        "multiply-adds of one evaluation, millions", f"{BUDGETS[-1]:,} training images each"
    )
    for k, patch in enumerate(PATCHES):
        mine = [model for model in dits if model.name.endswith(f"/{patch}")]
        axes.plot(
            [m.macs / 1e6 for m in mine], [m.final for m in mine], "o-", color=f"C{k}", label=f"patch {patch}"
        )
    for model in models:
        if model.name == "UNet":
            axes.plot(model.macs / 1e6, model.final, "k*", markersize=12, label="convolutional U-Net")
        axes.annotate(model.name, (model.macs / 1e6, model.final), textcoords="offset points", xytext=(5, 5))
    _save(figure, axes, out / "macs.png")

    figure, axes = _figure(
        "training compute, $10^{12}$ multiply-adds (3 x MACs x images)", "the same networks as they train"
    )
    for model in models:
        compute = [3 * model.macs * images / 1e12 for images in BUDGETS]
        axes.plot(
            compute,
            [model.frechet[images] for images in BUDGETS],
            "o-",
            color=colours[model.name],
            label=model.name,
        )
    _save(figure, axes, out / "training.png", columns=2)

    figure, axes = _figure(
        "sampling compute, $10^9$ multiply-adds an image (MACs x evaluations)", "more steps, or more network?"
    )
    for model in models:
        compute = [model.macs * nfe / 1e9 for nfe in model.by_nfe]
        axes.plot(compute, list(model.by_nfe.values()), "o-", color=colours[model.name], label=model.name)
    _save(figure, axes, out / "sampling.png", columns=2)


def _figure(across: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=across, ylabel="Fréchet distance", title=title)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: Path, columns: int = 1) -> None:
    logarithmic(axes, "x")
    logarithmic(axes, "y")
    axes.margins(0.08)
    axes.legend(ncols=columns)
    save_figure(figure, path)
