"""From DiT to SiT a step at a time: the SiT paper's ablation, and its diffusion coefficients, in miniature.

One DiT (width 96, depth 4, patch 4) learns Fashion-MNIST by each of eight transports, on the same images at
one constant learning rate, the ladder's six twice (seeds 0 and 1). The paper (Ma et al., 2024, tables 2 to 6:
SiT-B, 400,000 steps, FID-50K unguided, 250 evaluations) has 44.2 for DDPM's noise, 43.6 for the score on
continuous VP (39.1 weighted as the velocity), 39.8 for the velocity on VP, 34.8 on the linear path and 34.6 on
GVP; by the SDE with w^KL instead of the ODE 33.6 (linear); by the best coefficient 33.0.

Here every score takes 100 evaluations: Heun's method, Euler-Maruyama, or the ancestral sampler.

Command: ditkit study sit-ladder. Cost: about 40 minutes of two CPU cores with AMX, one thread and one process
each. What came out: docs/results.md.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ditkit.backbones import DiTConfig
from ditkit.plots import save_figure
from ditkit.recipes import recipe
from ditkit.sampling.config import DiffusionName
from ditkit.studies.cells import Cell, Point, Results
from ditkit.transports import Transport

IMAGES = 100_000
SEEDS = (0, 1)
NFE = 100
COEFFICIENTS: dict[str, tuple[DiffusionName, float]] = {
    "w^KL": ("sbdm", 1.0),
    "sigma": ("sigma", 0.5),
    "sin² pi t": ("increasing_decreasing", 0.5),
    "w^{KL,eta}": ("kl_eta", 1.0),
}
"""The paper's w by its name -> our D = w/2: its name and norm."""


class Model(NamedTuple):
    """A transport of the ladder and the paper's numbers for it."""

    transport: Transport
    ode: float | None
    sde: tuple[float, ...] = ()
    """With each of COEFFICIENTS."""
    rung: bool = True
    """On the ladder itself: trained twice."""


MODELS = {
    "ddpm-noise": Model(Transport(path="ddpm", predict="noise", variance="learned"), 44.2),
    "vp-score": Model(Transport(path="vp", predict="score"), 43.6),
    "vp-weighted-score": Model(
        Transport(path="vp", predict="score", loss="velocity"), 39.1, (35.7, 37.1, 37.7, 38.9)
    ),
    "vp-velocity": Model(Transport(path="vp", predict="velocity"), 39.8, (37.8, 38.7, 39.2, 41.1)),
    "linear-velocity": Model(Transport(path="linear", predict="velocity"), 34.8, (33.6, 33.5, 33.3, 33.0)),
    "gvp-velocity": Model(Transport(path="gvp", predict="velocity"), 34.6, (32.9, 33.4, 33.6, 33.2)),
    "linear-score": Model(
        Transport(path="linear", predict="score"), None, (41.0, 35.3, 34.4, 34.9), rung=False
    ),
    "gvp-score": Model(Transport(path="gvp", predict="score"), None, (37.8, 33.5, 33.2, 33.3), rung=False),
}


def cells() -> dict[str, Cell]:
    """All of seed 0 first."""
    base = recipe("fashion-sit").replace(
        backbone=DiTConfig(width=96, depth=4, heads=3, patch=4),
        train={"images": IMAGES, "lr": 1e-3, "schedule": "constant", "preview_images": IMAGES},
    )
    return {
        f"{name}-{seed}": Cell(
            base.replace(name=f"sit-ladder-{name}-{seed}", transport=model.transport, train={"seed": seed}),
            tuple(_points(name, model)),
        )
        for seed in SEEDS
        for name, model in MODELS.items()
        if model.rung or seed == SEEDS[0]
    }


def _points(name: str, model: Model) -> Iterator[Point]:
    yield Point(images=IMAGES, sampler="heun", steps=NFE // 2)
    if name == "ddpm-noise":
        yield Point(images=IMAGES, sampler="ancestral", steps=NFE)
    if model.sde:
        for diffusion, norm in COEFFICIENTS.values():
            yield Point(
                images=IMAGES, sampler="euler_maruyama", steps=NFE, diffusion=diffusion, diffusion_norm=norm
            )


class Row(NamedTuple):
    """A model's scores, each over its seeds."""

    name: str
    ode: tuple[float, ...]
    ancestral: tuple[float, ...]
    sde: Mapping[str, tuple[float, ...]]
    """By the paper's name of the coefficient."""


def report(results: Results, out: Path) -> str:
    """The ladder and the coefficients beside the paper's as Markdown; draws ladder.png into `out`."""
    rows = [row for row in (_row(name, results) for name in MODELS) if row.ode]
    if not rows:
        return "No cell is finished yet."
    _draw(rows, out / "ladder.png")
    lines = ["| step | FD, a seed each | mean | paper's FID |", "|---|---|---|---|"]
    lines += [
        f"| {step} | {', '.join(f'{v:.2f}' for v in values)} | {mean(values):.2f} | {paper:.1f} |"
        for step, values, paper in _ladder(rows)
    ]
    lines += [
        "",
        "| model | ODE | " + " | ".join(COEFFICIENTS) + " |",
        "|---" * (2 + len(COEFFICIENTS)) + "|",
    ]
    for row in rows:
        if row.sde:
            lines.append(f"| {row.name} | " + " | ".join(_beside(row)) + " |")
    lines += ["", "Means over the seeds; in brackets the paper's. Bold: the lowest of a row's SDEs."]
    return "\n".join(lines)


def _row(name: str, results: Results) -> Row:
    named = {choice: label for label, choice in COEFFICIENTS.items()}
    ode: list[float] = []
    ancestral: list[float] = []
    sde: dict[str, list[float]] = {label: [] for label in COEFFICIENTS}
    for seed in SEEDS:
        record = results.get(f"{name}-{seed}")
        for score in record["scores"].values() if record and record["finished"] else ():
            if score["sampler"] == "euler_maruyama":
                sde[named[score["diffusion"], score["diffusion_norm"]]].append(score["frechet"])
            else:
                (ode if score["sampler"] == "heun" else ancestral).append(score["frechet"])
    return Row(
        name, tuple(ode), tuple(ancestral), {label: tuple(values) for label, values in sde.items() if values}
    )


def _ladder(rows: list[Row]) -> Iterator[tuple[str, tuple[float, ...], float]]:
    """(step, Fréchet distances, the paper's FID), in the paper's order."""
    for row in rows:
        model = MODELS[row.name]
        if model.rung and model.ode is not None:
            yield f"{row.name}, ODE", row.ode, model.ode
    linear = next((row for row in rows if row.name == "linear-velocity"), None)
    if linear:
        papers = dict(zip(COEFFICIENTS, MODELS[linear.name].sde, strict=True))
        # Tuned: the coefficient whose mean is lowest, as the paper's is.
        best = min(linear.sde, key=lambda label: mean(linear.sde[label]))
        yield "linear-velocity, SDE, w^KL", linear.sde["w^KL"], papers["w^KL"]
        yield f"linear-velocity, SDE, tuned: {best}", linear.sde[best], min(papers.values())


def _beside(row: Row) -> Iterator[str]:
    paper = MODELS[row.name]
    yield f"{mean(row.ode):.2f}" + (f" ({paper.ode})" if paper.ode else "")
    lowest = min(mean(values) for values in row.sde.values())
    for (_, values), theirs in zip(row.sde.items(), paper.sde, strict=True):
        value = f"{mean(values):.2f}"
        yield (f"**{value}**" if mean(values) == lowest else value) + f" ({theirs})"


def _draw(rows: list[Row], path: Path) -> None:
    steps = list(_ladder(rows))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    across = np.arange(len(steps))
    axes.bar(
        across, [mean(values) for _, values, _ in steps], color="tab:blue", alpha=0.6, label="here, mean"
    )
    for k, (_, values, _) in enumerate(steps):
        axes.plot([k] * len(values), values, "k.", label="here, a seed" if k == 0 else None)
    axes.set_xticks(across, [step.replace(", ", "\n") for step, _, _ in steps], fontsize="small", rotation=30)
    axes.set(ylabel="Fréchet distance")
    axes.grid(alpha=0.3, axis="y")
    papers = axes.twinx()
    papers.plot(across, [paper for *_, paper in steps], "o--", color="tab:red", label="paper, FID (right)")
    papers.set_ylabel("paper's FID", color="tab:red")
    papers.set_ylim(0, 1.1 * max(paper for *_, paper in steps))
    figure.legend(loc="outside upper center", ncols=3)
    save_figure(figure, path)
