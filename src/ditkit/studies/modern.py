"""What should one train now? Ingredients of the modern recipe, each added to one that was tuned first.

The network of `fashion-sit` (width 192, depth 6, patch 4) sees 60,000 images of Fashion-MNIST. First the rate and the betas are
tuned, for the DiT paper's own recipe (DDPM's noise, learned variance, the original block, float32) and for ours. Then
every ingredient is added to ours by itself. A difference below twice the spread of the base's seeds reads "none".

FD is of 5,000 samples unguided and at guidance 1.5, AB2 with 10 steps; of the paper's recipe AB2 with 20, and 50 ancestral steps. By the
clock an ingredient costs what a step costs, which `ditkit bench --study modern` measures on a quiet machine, in turn.

Command: ditkit study modern. Cost: not measured yet; about 40 cells of minutes to half an hour each. It has not been run.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ditkit.plots import save_figure
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.studies.cells import Cell, Point, Results

IMAGES = 60_000
N = 5_000
GUIDED = 1.5
SEEDS = (0, 1, 2)
RATE, BETAS = 6e-3, (0.9, 0.95)  # of ours; neighbours are cells
STEPS = "steps.json"
"""The record of `ditkit bench --study modern --out`, beside the cells' folder."""

PAPERS = {
    f"paper-{rate:g}-{beta2:g}": (rate, beta2)
    for rate in (7.5e-4, 1.5e-3, 3e-3, 6e-3)
    for beta2 in (0.999, 0.95)
}
"""The settings that the paper's recipe is tuned over."""


class Ingredient(NamedTuple):
    """A change of the base's recipe."""

    what: str
    change: Mapping[str, Any]


def _train(**fields: Any) -> dict[str, Any]:
    return {"train": fields}


def _backbone(**fields: Any) -> dict[str, Any]:
    return {"backbone": fields}


def _transport(**fields: Any) -> dict[str, Any]:
    return {"transport": fields}


INGREDIENTS = {
    "muon": Ingredient("Muon for the blocks' matrices, half the rate", _train(optimizer="muon", lr=RATE / 2)),
    "tread": Ingredient("TREAD, half of the tokens", _train(routing="tread:first=1,last=4")),
    "sprint": Ingredient("SPRINT, three quarters of the tokens in two of six blocks", _backbone(sparse=0.75)),
    "rotary": Ingredient("rotary positions", _backbone(positions="rotary")),
    "qk-norm": Ingredient("normed queries and keys", _backbone(qk_norm=True)),
    "value-residual": Ingredient("value residual", _backbone(value_residual=True)),
    "depthwise": Ingredient("depthwise convolution in the MLP", _backbone(mlp="depthwise")),
    "stem": Ingredient("convolutional stem", _backbone(stem="convolutional")),
    "swiglu": Ingredient("SwiGLU", _backbone(mlp="swiglu")),
    "rms": Ingredient("RMS norm", _backbone(norm="rms")),
    "registers": Ingredient("four registers", _backbone(registers=4)),
    "uniform": Ingredient("times all alike", _transport(time_law="uniform")),
    "noisier": Ingredient("times nearer to noise", _transport(time_law="logit_normal:mean=0.4")),
    "cleaner": Ingredient("times nearer to data", _transport(time_law="logit_normal:mean=-0.4")),
    "wider": Ingredient("times spread by 1.4", _transport(time_law="logit_normal:spread=1.4")),
    "min-snr": Ingredient("min-SNR weights, 5", _transport(weight="min_snr")),
    "sigmoid": Ingredient("sigmoid weights", _transport(weight="sigmoid")),
    "data": Ingredient("predicts data, loss of the velocity", _transport(predict="data", loss="velocity")),
    "contrastive": Ingredient("contrastive flow term", _train(terms=("contrastive",))),
    "layer-sync": Ingredient("LayerSync", _train(terms=("layer_sync",))),
    "sra": Ingredient("self-alignment (SRA)", _train(terms=("sra",))),
    "repa": Ingredient("REPA, EfficientNet's features", _train(terms=("repa",))),
    "dispersive": Ingredient("dispersive term", _train(terms=("dispersive",))),
    "wsd": Ingredient("constant rate, then a fall", _train(schedule="wsd")),
    "half-batch": Ingredient("batches of 32", _train(batch=32)),
    "double-batch": Ingredient("batches of 128", _train(batch=128)),
    "half-rate": Ingredient("half the rate", _train(lr=RATE / 2)),
    "double-rate": Ingredient("twice the rate", _train(lr=RATE * 2)),
    "beta2": Ingredient("β2 0.999", _train(betas=(0.9, 0.999))),
}


def base() -> Recipe:
    return recipe("fashion-sit").replace(
        name="modern-base",
        transport={"time_law": "logit_normal"},
        train={"images": IMAGES, "lr": RATE, "betas": BETAS, "preview_images": IMAGES},
    )


def paper(rate: float, beta2: float) -> Recipe:
    return recipe("fashion-dit").replace(
        name=f"modern-paper-{rate:g}-{beta2:g}",
        train={
            "images": IMAGES,
            "lr": rate,
            "betas": (0.9, beta2),
            "preview_images": IMAGES,
            "precision": "fp32",
            "compile": "off",
        },
    )


def cells() -> dict[str, Cell]:
    """Those expected to matter first: the base, the paper's tuning and ingredients by turns."""
    ours = base()
    points = tuple(
        Point(images=IMAGES, sampler="ab2", steps=10, guidance=guidance, n=N) for guidance in (1.0, GUIDED)
    )
    found = {f"base-{SEEDS[0]}": Cell(ours, points)}
    papers = {name: Cell(paper(*tuned), tuple(_paper_points())) for name, tuned in PAPERS.items()}
    others = {
        name: Cell(ours.replace(name=f"modern-{name}", **some.change), points)
        for name, some in INGREDIENTS.items()
    }
    others = dict(list(others.items())[:4]) | {
        f"base-{seed}": Cell(ours.replace(name=f"modern-base-{seed}", train={"seed": seed}), points)
        for seed in SEEDS[1:]
    } | others  # fmt: skip
    return found | others | papers


def _paper_points() -> Iterator[Point]:
    for guidance in (1.0, GUIDED):
        yield Point(images=IMAGES, sampler="ab2", steps=20, guidance=guidance, n=N)
    yield Point(images=IMAGES, sampler="ancestral", steps=50, guidance=GUIDED, n=N)


class Row(NamedTuple):
    """A cell's scores."""

    name: str
    plain: float
    """FD unguided, by the cell's best sampler."""
    guided: float
    accuracy: float
    """The share of guided samples that are read as their class."""


def report(results: Results, out: Path) -> str:
    """Tables of the tuning and of the ingredients, as Markdown; draws ingredients.png into `out`."""
    rows = {name: _row(name, record) for name, record in results.items() if record["finished"]}
    if not rows:
        return "No cell is finished yet."
    lines: list[str] = []
    if papers := [row for name, row in rows.items() if name in PAPERS]:
        lines += _tuning(papers)
    seeds = [rows[name] for seed in SEEDS if (name := f"base-{seed}") in rows]
    added = [row for name, row in rows.items() if name in INGREDIENTS]
    if seeds:
        lines += _added(seeds, added, _steps(out / STEPS))
    if len(seeds) > 1 and added:
        _draw(seeds, added, out / "ingredients.png")
    return "\n".join(lines)


def _row(name: str, record: Mapping[str, Any]) -> Row:
    scores = list(record["scores"].values())
    plain = min(score["frechet"] for score in scores if score["guidance"] == 1)
    guided = min((score for score in scores if score["guidance"] != 1), key=lambda score: score["frechet"])
    return Row(name, plain, guided["frechet"], guided["accuracy"])


def _tuning(papers: list[Row]) -> Iterator[str]:
    yield f"The paper's recipe after {IMAGES:,} images, by rate and β2:\n"
    yield f"| rate | β2 | FD | FD, guidance {GUIDED} | read as asked |"
    yield "|---|---|---|---|---|"
    best = min(papers, key=lambda row: row.plain)
    for row in papers:
        rate, beta2 = PAPERS[row.name]
        marks = "**" if row is best else ""
        yield f"| {rate:g} | {beta2:g} | {marks}{row.plain:.2f}{marks} | {row.guided:.2f} | {row.accuracy:.1%} |"
    yield ""


def spread(values: list[float]) -> float:
    """Twice the standard deviation of the base's seeds: less than that is no difference."""
    return 2 * stdev(values) if len(values) > 1 else float("inf")


def _added(seeds: list[Row], added: list[Row], steps: Mapping[str, float]) -> Iterator[str]:
    plain, guided = mean(row.plain for row in seeds), mean(row.guided for row in seeds)
    bounds = spread([row.plain for row in seeds]), spread([row.guided for row in seeds])
    yield (
        f"Ours ({len(seeds)} seed{'s' * (len(seeds) > 1)}): FD {plain:.2f}, at guidance {GUIDED} {guided:.2f}; differences below "
        f"{bounds[0]:.2f} and {bounds[1]:.2f}, twice the spread of the seeds, read none.\n"
    )
    yield f"| added | FD | change | FD, guidance {GUIDED} | change | read as asked | a step's time |"
    yield "|---|---|---|---|---|---|---|"
    for row in sorted(added, key=lambda row: row.guided):
        time = f"{steps[row.name]:.2f}" if row.name in steps else "not measured"
        yield (
            f"| {INGREDIENTS[row.name].what} | {row.plain:.2f} | {change(row.plain - plain, bounds[0])} | {row.guided:.2f} | "
            f"{change(row.guided - guided, bounds[1])} | {row.accuracy:.1%} | {time} |"
        )


def change(difference: float, bound: float) -> str:
    """A difference in words: none where it is within the bound."""
    return "none" if abs(difference) < bound else f"{difference:+.2f}"


def _steps(file: Path) -> dict[str, float]:
    """Each cell's time of a step in terms of the base's, where they were measured; an image's where batches differ."""
    if not file.exists():
        return {}
    record = json.loads(file.read_text(encoding="utf-8"))
    return {row["cell"]: row["cost"] for row in record["rows"]}


def _draw(seeds: list[Row], added: list[Row], path: Path) -> None:
    figure = Figure(figsize=(8, 0.3 * len(added) + 1.5), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(added, key=lambda row: row.guided)
    centre, bound = mean(row.guided for row in seeds), spread([row.guided for row in seeds])
    axes.barh(range(len(ordered)), [row.guided - centre for row in ordered], color="tab:blue", alpha=0.7)
    axes.set_yticks(range(len(ordered)), [INGREDIENTS[row.name].what for row in ordered])
    axes.axvspan(-bound, bound, color="0.9", label="twice the spread of the base's seeds")
    axes.invert_yaxis()
    axes.set(xlabel=f"change of the Fréchet distance at guidance {GUIDED}")
    axes.grid(alpha=0.3, axis="x")
    axes.legend()
    save_figure(figure, path)
