"""How should a block be conditioned on time and label? The DiT paper's comparison in miniature.

One DiT (width 128, depth 6, patch 4) with each of the four conditionings, twice (seeds 0 and 1), on the same
images of Fashion-MNIST at one constant learning rate. The paper (Peebles & Xie, 2023, figure 5 and table 4:
XL/2, 400,000 steps, FID-50K unguided) has 35.24 in-context, 26.14 cross-attention, 25.21 adaLN, 19.47 adaLN-Zero.

Command: ditkit study conditionings. Cost: about half an hour of two CPU cores with AMX, one thread and one
process each. What came out: docs/results.md.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ditkit.backbones import DiTConfig
from ditkit.costs import recipe_cost
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.studies.cells import Cell, Point, Results
from ditkit.studies.figures import Line, frechet_by_training

PAPER = {"in_context": 35.24, "cross_attention": 26.14, "adaln": 25.21, "adaln_zero": 19.47}
BUDGETS = (50_000, 100_000)  # training images at which every network is scored
SEEDS = (0, 1)


def cells() -> dict[str, Cell]:
    """All four of seed 0 first."""
    train = {"images": BUDGETS[-1], "lr": 1e-3, "schedule": "constant", "checkpoint_images": BUDGETS[0]}
    base = recipe("fashion-sit").replace(train={**train, "preview_images": BUDGETS[-1]})
    backbone = DiTConfig(width=128, depth=6, heads=4, patch=4)
    points = tuple(Point(images=images, sampler="heun", steps=25) for images in BUDGETS)
    return {
        f"{name}-{seed}": Cell(
            base.replace(
                name=f"conditionings-{name}-{seed}",
                backbone=backbone.model_copy(update={"conditioning": name}),
                train={"seed": seed},
            ),
            points,
        )
        for seed in SEEDS
        for name in PAPER
    }


class Row(NamedTuple):
    """A finished cell."""

    name: str
    seed: int
    params: int
    macs: int
    frechet: Mapping[int, float]
    """By training images."""
    accuracy: float
    images_per_second: float


def report(results: Results, out: Path) -> str:
    """The table as Markdown, the paper's order first; draws frechet.png into `out`."""
    rows = sorted(_rows(results), key=lambda row: (list(PAPER).index(row.name), row.seed))
    if not rows:
        return "No cell is finished yet."
    frechet_by_training([Line(row.name, row.frechet) for row in rows], out / "frechet.png")
    lines = [
        "| conditioning | seed | parameters, M | MMACs | "
        + " | ".join(f"FD, {images // 1000}k images" for images in BUDGETS)
        + " | class accuracy | images/s | paper's FID |",
        "|" + "---|" * (7 + len(BUDGETS)),
    ]
    for row in rows:
        distances = " | ".join(f"{row.frechet[images]:.2f}" for images in BUDGETS)
        lines.append(
            f"| {row.name} | {row.seed} | {row.params / 1e6:.2f} | {row.macs / 1e6:.1f} | {distances} | "
            f"{row.accuracy:.1%} | {row.images_per_second:.0f} | {PAPER[row.name]} |"
        )
    return "\n".join(lines)


def _rows(results: Results) -> Iterator[Row]:
    for cell, record in results.items():
        if record["finished"]:
            known = Recipe.recorded(record["recipe"], cell)
            cost, scores = recipe_cost(known), {row["images"]: row for row in record["scores"].values()}
            yield Row(
                name=cell.rpartition("-")[0],
                seed=known.train.seed,
                params=cost.params,
                macs=cost.macs,
                frechet={images: score["frechet"] for images, score in scores.items()},
                accuracy=scores[BUDGETS[-1]]["accuracy"],
                images_per_second=record["images_per_second"],
            )
