"""Which sampler, and how many evaluations? Fréchet distance against evaluations of the network.

Two trained networks, the recipes fashion-sit (linear path, velocity) and fashion-dit (DDPM, noise and learned
variance), make the same thousand images by every sampler: 5 to 100 evaluations each, 250 where the
papers use it. Unguided, but for one column at 20. The time grids are compared at 10.

Command: ditkit study samplers. Cost: about 70 minutes of two CPU cores with AMX, one thread and one process
each, of which half is training. What came out: docs/results.md.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from ditkit.plots import logarithmic, save_figure
from ditkit.recipes import recipe
from ditkit.sampling import SAMPLERS
from ditkit.studies.cells import Cell, Point, Results

LONGEST = 250
MODELS = {"fashion-sit": ("heun", "euler_maruyama"), "fashion-dit": ("ancestral",)}
"""The networks, and what their papers sample with, in LONGEST evaluations."""
BUDGETS = (5, 10, 20, 50, 100, 250)  # evaluations; a sampler takes the most steps that they pay for
MIDDLE, GUIDANCE = 20, 1.5  # one guided point
FEW = 10  # evaluations at which the time grids are compared
SPACED: tuple[str, ...] = ("heun", "ab2", "dpmpp_2m")
SPACINGS: tuple[str, ...] = ("log_snr", "karras", "shifted")
TOLERANCE = 1e-3
NEAR = 1.05  # "as good as the best": within so much of its Fréchet distance; a standard error is about 3 %


def cells() -> dict[str, Cell]:
    found = {}
    for name, patient in MODELS.items():
        known = recipe(name)
        found[name] = Cell(known, tuple(_points(known.train.images, patient)))
    return found


def _points(images: int, patient: tuple[str, ...]) -> Iterator[Point]:
    for sampler in SAMPLERS:
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
    return max(1, bisect_right(range(1, budget + 1), budget, key=SAMPLERS[sampler].evaluations))


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
    yield f"**{name}**, Fréchet distance by evaluations; bold: the lowest of a column:\n"
    heads = " | ".join(str(budget) for budget in BUDGETS)
    yield f"| sampler | {heads} | {MIDDLE}, guidance {GUIDANCE:g} |"
    yield "|" + "---|" * (len(BUDGETS) + 2)
    fixed = {
        curve.sampler: [*_at_budgets(curve), curve.guided] for curve in curves if curve.sampler != "dopri5"
    }
    for sampler, row in _lowest_in_bold(fixed):
        yield f"| {sampler} | {row} |"
    for curve in curves:
        if curve.sampler == "dopri5":
            for nfe, distance in curve.plain.items():
                yield f"\ndopri5 to {TOLERANCE:g}: {distance:.2f} with {nfe:g} evaluations, the mean over the images."
    spaced = {
        curve.sampler: [curve.plain.get(FEW), *(curve.spaced.get(grid) for grid in SPACINGS)]
        for curve in curves
        if curve.spaced
    }
    if spaced:
        yield f"\nOther time grids, at {FEW} evaluations:\n"
        yield "| sampler | its own | " + " | ".join(SPACINGS) + " |"
        yield "|" + "---|" * (len(SPACINGS) + 2)
        for sampler, row in _lowest_in_bold(spaced):
            yield f"| {sampler} | {row} |"
    plain = [(nfe, distance, curve.sampler) for curve in curves for nfe, distance in curve.plain.items()]
    best, most, winner = min((distance, nfe, sampler) for nfe, distance, sampler in plain)
    nfe, distance, sampler = min(row for row in plain if row[1] <= NEAR * best)
    yield (
        f"\nThe lowest of all is {winner}'s {best:.2f} with {most:g} evaluations. The fewest within {NEAR - 1:.0%} of "
        f"it are {sampler}'s {nfe:g} ({distance:.2f})."
    )


def _at_budgets(curve: Curve) -> Iterator[float | None]:
    for budget in BUDGETS:
        yield curve.plain.get(SAMPLERS[curve.sampler].evaluations(_steps(curve.sampler, budget)))


def _lowest_in_bold(rows: Mapping[str, list[float | None]]) -> Iterator[tuple[str, str]]:
    """Each row's name and its cells; the lowest of every column in bold, nothing where nothing is."""
    columns = [
        [value for value in column if value is not None] for column in zip(*rows.values(), strict=True)
    ]
    for name, row in rows.items():
        cells = []
        for value, column in zip(row, columns, strict=True):
            text = "" if value is None else f"{value:.2f}"
            cells.append(f"**{text}**" if value is not None and value == min(column) else text)
        if any(cells):
            yield name, " | ".join(cells)


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
    save_figure(figure, path)
