"""Which sampler, and how many evaluations? Fréchet distance against evaluations of the network.

Two trained networks, the recipes fashion-sit (linear path, velocity) and fashion-dit (DDPM, noise and learned
variance), are asked for the same thousand images by every sampler: 5 to 100 evaluations each, 250 where the
papers use it. Unguided, but for one column at 20. The time grids are compared at 10.

Command: ditkit study samplers. Cost: about 70 minutes of two CPU cores with AMX, one thread and one process
each, of which half is training. What came out: docs/results.md.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, get_args

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from ditkit.plots import logarithmic
from ditkit.recipes import recipe
from ditkit.sampling import SAMPLERS
from ditkit.sampling.config import SamplerName, Spacing
from ditkit.studies.cells import Cell, Point, Results

LONGEST = 250
MODELS = {"fashion-sit": ("heun", "euler_maruyama"), "fashion-dit": ("ancestral",)}
"""The networks, and what their papers sample with, in LONGEST evaluations."""
BUDGETS = (5, 10, 20, 50, 100, 250)  # evaluations; a sampler takes the most steps that they pay for
MIDDLE, GUIDANCE = 20, 1.5  # one guided point
FEW = 10  # evaluations at which the time grids are compared
SPACED: tuple[SamplerName, ...] = ("heun", "ab2", "dpmpp_2m")
SPACINGS: tuple[Spacing, ...] = ("log_snr", "karras", "shifted")
TOLERANCE = 1e-3
NEAR = 1.05  # "as good as the best": within so much of its Fréchet distance; a standard error is about 3 %


def cells() -> dict[str, Cell]:
    found = {}
    for name, patient in MODELS.items():
        known = recipe(name)
        found[name] = Cell(known, tuple(_points(known.train.images, patient)))
    return found


def _points(images: int, patient: tuple[str, ...]) -> Iterator[Point]:
    for sampler in get_args(SamplerName):
        if sampler == "dopri5":
            yield Point(images=images, sampler=sampler, tolerance=TOLERANCE)
            continue
        for budget in BUDGETS:
            if budget < LONGEST or sampler in patient:
                yield Point(images=images, sampler=sampler, steps=_steps(sampler, budget))
        yield Point(images=images, sampler=sampler, steps=_steps(sampler, MIDDLE), guidance=GUIDANCE)
    for sampler in SPACED:
        for grid in SPACINGS:
            yield Point(images=images, sampler=sampler, steps=_steps(sampler, FEW), grid=grid)


def _steps(sampler: str, budget: int) -> int:
    """The most steps of at most so many evaluations."""
    entry = SAMPLERS[sampler]
    assert entry.nfe is not None
    steps = 1
    while entry.nfe(steps + 1, **entry.choices) <= budget:
        steps += 1
    return steps


class Curve(NamedTuple):
    """A sampler's scores on one network."""

    sampler: str
    plain: dict[float, float]
    """Fréchet distance by evaluations, unguided on the sampler's own grid."""
    guided: float | None
    spaced: dict[str, float]
    """By the named grid, at FEW evaluations."""


def report(results: Results, out: Path) -> str:
    """A table for each network as Markdown and what to take from it; draws samplers.png into `out`."""
    known = {name: _curves(record["scores"].values()) for name, record in results.items()}
    known = {name: curves for name, curves in known.items() if any(curve.plain for curve in curves)}
    if not known:
        return "No score is there yet."
    _draw(known, out / "samplers.png")
    return "\n\n".join("\n".join(_table(name, curves)) for name, curves in known.items())


def _curves(scores) -> list[Curve]:
    found = {sampler: Curve(sampler, {}, None, {}) for sampler in SAMPLERS}
    for row in sorted(scores, key=lambda row: row["nfe"]):
        curve = found[row["sampler"]]
        if row["guidance"] != 1:
            found[row["sampler"]] = curve._replace(guided=row["frechet"])
        elif grid := row.get("grid"):
            curve.spaced[grid] = row["frechet"]
        else:
            curve.plain[row["nfe"]] = row["frechet"]
    return list(found.values())


def _table(name: str, curves: list[Curve]) -> Iterator[str]:
    yield f"**{name}**, Fréchet distance by evaluations:\n"
    heads = " | ".join(str(budget) for budget in BUDGETS)
    yield f"| sampler | {heads} | {MIDDLE}, guidance {GUIDANCE:g} |"
    yield "|" + "---|" * (len(BUDGETS) + 2)
    for curve in curves:
        if not curve.plain:
            continue
        if curve.sampler == "dopri5":
            ((nfe, distance),) = curve.plain.items()
            yield f"| dopri5, {TOLERANCE:g}: {nfe:g} evaluations | " + "| " * 4 + f"{distance:.2f} | | |"
            continue
        entry = SAMPLERS[curve.sampler]
        assert entry.nfe is not None
        costs = [entry.nfe(_steps(curve.sampler, budget), **entry.choices) for budget in BUDGETS]
        values = " | ".join(f"{curve.plain[nfe]:.2f}" if nfe in curve.plain else "" for nfe in costs)
        yield f"| {curve.sampler} | {values} | {'' if curve.guided is None else f'{curve.guided:.2f}'} |"
    spaced = [curve for curve in curves if curve.spaced]
    if spaced:
        yield f"\nOther time grids, at {FEW} evaluations:\n"
        yield "| sampler | its own | " + " | ".join(SPACINGS) + " |"
        yield "|" + "---|" * (len(SPACINGS) + 2)
        for curve in spaced:
            here = [curve.plain.get(FEW), *(curve.spaced.get(grid) for grid in SPACINGS)]
            yield f"| {curve.sampler} | " + " | ".join("" if v is None else f"{v:.2f}" for v in here) + " |"
    yield ""
    yield from _advice(curves)


def _advice(curves: list[Curve]) -> Iterator[str]:
    """The best of each budget, and the fewest evaluations that come near the best of all."""
    plain = [(nfe, distance, curve.sampler) for curve in curves for nfe, distance in curve.plain.items()]
    parts = []
    for budget in BUDGETS:
        affordable = [(distance, nfe, sampler) for nfe, distance, sampler in plain if nfe <= budget]
        if affordable:
            distance, nfe, sampler = min(affordable)
            parts.append(f"{budget}: {sampler} {distance:.2f}" + (f" (with {nfe:g})" if nfe < budget else ""))
    yield "Best by evaluations, each sampler on its own grid: " + "; ".join(parts) + "."
    best, _, winner = min((distance, nfe, sampler) for nfe, distance, sampler in plain)
    nfe, distance, sampler = min(row for row in plain if row[1] <= NEAR * best)
    yield (
        f"\nThe lowest of all is {winner}'s {best:.2f}; {sampler} comes within {NEAR - 1:.0%} of it "
        f"with {nfe:g} evaluations ({distance:.2f})."
    )


def _draw(known: Mapping[str, list[Curve]], path: Path) -> None:
    figure = Figure(figsize=(6 * len(known), 5), layout="constrained")
    panels = figure.subplots(1, len(known), squeeze=False, sharey=True)[0]
    for axes, (name, curves) in zip(panels, known.items(), strict=True):
        for k, curve in enumerate(curves):
            stochastic = curve.sampler in ("ancestral", "euler_maruyama", "sde_heun")
            style = "D" if len(curve.plain) == 1 else ("s--" if stochastic else "o-")
            nfe = list(curve.plain)
            axes.plot(
                nfe, list(curve.plain.values()), style, color=f"C{k}", label=curve.sampler, markersize=4
            )
        axes.set(xlabel="evaluations of the network", title=f"{name}, unguided")
        logarithmic(axes, "x")
        logarithmic(axes)
        axes.set_xticks(BUDGETS, minor=False)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("Fréchet distance")
    panels[-1].legend(title="dashed: adds noise", fontsize="small")
    figure.savefig(path, dpi=120)
