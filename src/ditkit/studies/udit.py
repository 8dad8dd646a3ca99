"""U-DiT against DiT: the same images, the same transport, the same multiply-adds.

Two comparisons on Fashion-MNIST at 32 x 32 pixels. A U-DiT and a DiT (patch 2) of equal MACs and parameters,
twice (seeds 0 and 1); and a small U-DiT beside a DiT of six times its MACs. All are scored while they train.
The paper (Tian et al., 2024, tables 1, 2 and 6: ImageNet, 400,000 steps, FID-50K unguided) has DiT-S/2 at 67.40
and U-DiT-S at 31.51 with equal MACs, DiT-XL/2 at 20.05 and U-DiT-B at 16.64 with a sixth of them.

MACs are those of the fused network, as in the paper; images/s are of training, with an evaluation's compilation.

Command: ditkit study udit. Cost: about an hour of two CPU cores with AMX, one thread and one process
each. What came out: docs/results.md.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ditkit.backbones import DiTConfig, UDiTConfig
from ditkit.costs import recipe_cost
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.studies.cells import Cell, Point, Results
from ditkit.studies.figures import Line, frechet_by_training

SIZE = 32
BUDGETS = (16_000, 32_000, 48_000)  # training images at which every network is scored
STEPS = 10  # and evaluations
GUIDANCE = 1.5


class Entry(NamedTuple):
    """A network and how often it is trained."""

    backbone: DiTConfig | UDiTConfig
    seeds: tuple[int, ...]
    paper: str


ENTRIES = {
    "U-DiT": Entry(UDiTConfig(width=16, depth=(1, 2, 4, 2, 1), heads=1), (0, 1), "U-DiT-S 31.51"),
    "DiT": Entry(DiTConfig(width=96, depth=4, heads=3, patch=2), (0, 1), "DiT-S/2 67.40"),
    "U-DiT-sixth": Entry(UDiTConfig(width=8, depth=(1, 1, 1, 1, 1), heads=1), (0,), "U-DiT-B 16.64"),
    "DiT-sixfold": Entry(DiTConfig(width=96, depth=7, heads=3, patch=2), (0,), "DiT-XL/2 20.05"),
}


def cells() -> dict[str, Cell]:
    """The slowest first, so that processes that share them end together."""
    train = {"images": BUDGETS[-1], "lr": 1e-3, "schedule": "constant", "checkpoint_images": BUDGETS[0]}
    base = recipe("fashion-sit").replace(data={"size": SIZE}, train={**train, "preview_images": BUDGETS[-1]})
    points = [Point(images=images, sampler="ab2", steps=STEPS) for images in BUDGETS]
    points.append(Point(images=BUDGETS[-1], sampler="ab2", steps=STEPS, guidance=GUIDANCE))
    return {
        f"{name}-{seed}": Cell(
            base.replace(name=f"udit-{name}-{seed}", backbone=network.backbone, train={"seed": seed}),
            tuple(points),
        )
        for name, network in ENTRIES.items()
        for seed in network.seeds
    }


class Row(NamedTuple):
    """A finished cell."""

    name: str
    seed: int
    params: int
    macs: int
    """The multiply-adds of the fused network."""
    frechet: Mapping[int, float]
    """By training images, unguided."""
    accuracy: float
    """Unguided, at the end."""
    guided: tuple[float, float]
    """Fréchet distance and class accuracy at the end."""
    images_per_second: float


def report(results: Results, out: Path) -> str:
    """The table as Markdown; draws frechet.png into `out`."""
    rows = list(_rows(results))
    if not rows:
        return "No cell is finished yet."
    frechet_by_training(
        [
            Line(
                f"{row.name}, {row.macs / 1e6:.0f} MMACs",
                row.frechet,
                "o-" if row.name.startswith("U-DiT") else "s--",
            )
            for row in rows
        ],
        out / "frechet.png",
    )
    lines = [
        "| network | seed | parameters, M | MMACs | "
        + " | ".join(f"FD, {images // 1000}k images" for images in BUDGETS)
        + f" | class accuracy | FD, guidance {GUIDANCE:g} | class accuracy | images/s | paper's FID |",
        "|" + "---|" * (9 + len(BUDGETS)),
    ]
    for row in rows:
        distances = " | ".join(f"{row.frechet[images]:.2f}" for images in BUDGETS)
        lines.append(
            f"| {row.name} | {row.seed} | {row.params / 1e6:.2f} | {row.macs / 1e6:.1f} | {distances} | "
            f"{row.accuracy:.1%} | {row.guided[0]:.2f} | {row.guided[1]:.1%} | {row.images_per_second:.0f} | "
            f"{ENTRIES[row.name].paper} |"
        )
    return "\n".join(lines)


def _rows(results: Results) -> Iterator[Row]:
    for cell, record in results.items():
        if record["finished"]:
            known = Recipe.recorded(record["recipe"], cell)
            cost = recipe_cost(known, fused=True)
            scores = list(record["scores"].values())
            plain = {row["images"]: row for row in scores if row["guidance"] == 1}
            (guided,) = (row for row in scores if row["guidance"] != 1)
            yield Row(
                name=cell.rpartition("-")[0],
                seed=known.train.seed,
                params=cost.params,
                macs=cost.macs,
                frechet={images: row["frechet"] for images, row in plain.items()},
                accuracy=plain[BUDGETS[-1]]["accuracy"],
                guided=(guided["frechet"], guided["accuracy"]),
                images_per_second=record["images_per_second"],
            )
