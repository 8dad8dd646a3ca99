"""`ditkit compare RUN RUN ...`: models side by side, under one protocol, with error bars."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ditkit.cli.compare_siblings import expanded, group_record, group_table, groups_by_title, titles_of
from ditkit.cli.evaluate import find_reference
from ditkit.cli.options import SolverOptions, check_writable
from ditkit.cli.parsing import parse
from ditkit.cli.shapes import Positional
from ditkit.device import pick_device
from ditkit.errors import InputError
from ditkit.files import LOCK, owned
from ditkit.pictures import side_by_side
from ditkit.pipeline import Pipeline, load
from ditkit.plots import Series, trade_offs
from ditkit.processes import Processes, joined
from ditkit.records import write_json, write_whole
from ditkit.scoring import Ruler, rulers, software
from ditkit.scoring.comparison import Cell, Row, compare_cell, rows_of
from ditkit.scoring.siblings import groups_of
from ditkit.scoring.tables import MEASURED, distance_name, markdown_table, with_error

MOST_CLASSES = 10  # rows of samples.png


class CompareCommand(SolverOptions):
    """Score several models with the same seeds, labels, N and features: a table with standard errors over
    the draw of the images, samples of the same seeds side by side, and over several guidance scales the
    curve of quality against diversity. Trainings that differ in their seed only are also summed up: the mean of each
    score, and its standard deviation over trainings.

    Sampler and steps are each model's own by default; --solvers compares several. A comparison that was
    stopped is resumed by the same command, and one more model costs only its own samples.
    """

    runs: Annotated[tuple[str, ...], Positional, Field(min_length=1)]
    """Runs or snapshots, or folders of runs made by `ditkit train --seeds`; differences are to the first of them, with the first of the solvers."""
    n: Annotated[int, Field(ge=4)] = 1000
    """Images to sample from each, the same number of every class."""
    guidance: str = ""
    """Scales to compare at, for instance 1,1.5,2,4; without it 1 (off) and each model's own scale."""
    solvers: tuple[str, ...] = ()
    """Samplers with their steps to compare, for instance heun:25 ab2:10; each model's own by default."""
    features: tuple[str, ...] = ("classifier",)
    """Networks to measure with, as in `ditkit eval`."""
    reference: str | None = None
    """What to compare with, as in `ditkit eval`; by default the data of the first model."""
    resamples: Annotated[int, Field(ge=2)] = 100
    """Resamples behind the standard errors."""
    out: Path = Path("compare")
    """Folder for compare.md, compare.json, samples.png, curves.png and the cache of samples' statistics."""


def run(argv: list[str]) -> None:
    command = parse(CompareCommand, argv, "compare")
    with joined(pick_device(command.device)) as processes:
        _compare(command, processes)


def _compare(command: CompareCommand, processes: Processes) -> None:
    check_writable(command.out)
    folders = expanded(command.runs)
    titles = titles_of(folders)
    models = {name: load(name, command.device) for name in folders}
    groups = groups_by_title(models, folders, titles)
    scales, solvers = _scales(command.guidance), _solvers(command)
    for pipeline in models.values():
        for solver in solvers:
            pipeline.recipe.sample.override(command.request(**solver))  # refuses what none of them can do
    _check_alike(models)
    reference = find_reference(command.reference, next(iter(models.values())), None)
    data = next(iter(models.values())).recipe.data
    with owned(command.out) if processes.first else nullcontext():
        measure = rulers(command.features, reference, pick_device(command.device), data)
        names = data.open().names
        cells = _cells(command, models, titles, measure, names, scales, solvers)
        if not processes.first:
            return
        _write(command, cells, groups, measure, names)
    files = (path for path in sorted(command.out.iterdir()) if path.is_file() and path.name != LOCK)
    print("\n" + "\n".join(map(str, files)))


def _cells(
    command: CompareCommand,
    models: Mapping[str, Pipeline],
    titles: Mapping[str, str],
    measure: Sequence[Ruler],
    names: Sequence[str],
    scales: Sequence[float],
    solvers: Sequence[dict[str, Any]],
) -> list[Cell]:
    """Every model by every solver at every guidance scale, sampled and scored."""
    cells: list[Cell] = []
    for name, pipeline in models.items():
        own = pipeline.recipe.sample.guidance
        guidances = (scales or sorted({1.0, own})) if pipeline.classes else [1.0]
        command.compile_for(pipeline, command.n * len(solvers) * len(guidances))
        for solver, guidance in product(solvers, guidances):
            parts = [titles[name], *map(str, solver.values()), f"{guidance:g}"]
            print(", ".join([*parts[:-1], f"guidance {guidance:g}"]), flush=True)
            folder = command.out / "cells" / "-".join(parts).replace("/", "-")
            cells.append(
                compare_cell(
                    titles[name], pipeline, guidance, measure, names, folder,
                    n=command.n, first_seed=command.seed, request=command.request(**solver),
                )
            )  # fmt: skip
    return cells


def _write(
    command: CompareCommand,
    cells: Sequence[Cell],
    group_of: Mapping[str, str],
    measure: Sequence[Ruler],
    names: Sequence[str],
) -> None:
    """Tables, record, curves and pictures. `group_of` names the groups of trainings that are summed up."""
    tables, record, summed = [], [], []
    for place, ruler in enumerate(measure):
        rows = rows_of(cells, measure, place, command.resamples)
        if group_of:
            groups = groups_of(rows, group_of)
            tables.append(group_table(groups))
            summed += [group_record(group) for group in groups]
        tables.append(markdown(rows))
        record += [_record(row) for row in rows]
        if len({cell.guidance for cell in cells}) > 2:
            suffix = f"-{ruler.network.name}" if len(measure) > 1 else ""
            trade_offs(_series(rows), command.out / f"curves{suffix}.png")
    text = "\n\n".join(tables)
    print(f"\n{text}")
    write_whole(command.out / "compare.md", f"{text}\n".encode())
    write_json(command.out / "compare.json", {"software": software(), "rows": record, "groups": summed})
    _picture(cells, names, command.out / "samples.png")


def markdown(rows: Sequence[Row]) -> str:
    """The comparison as a table in Markdown, with the protocol below."""
    first = rows[0]
    scores = first.scores
    distance = distance_name(scores.features)
    head = ["model", "sampler, NFE", "guidance", distance, "to the first", *MEASURED]
    cells = []
    for row in rows:
        facts, found, errors = row.cell.report.protocol, row.scores, row.errors
        accuracy = found.labels.accuracy if found.labels else None
        cells.append(
            [
                row.cell.model,
                f"{facts['sampler']}, {facts['nfe']}",
                f"{row.cell.guidance:g}",
                with_error(found.frechet, errors.frechet, ".3f"),
                "" if row.difference is None else f"{row.difference[0]:+.3f} ± {row.difference[1]:.3f}",
                with_error(accuracy, errors.accuracy, ".1f", 100, " %"),
                with_error(found.precision, errors.precision, ".3f"),
                with_error(found.recall, errors.recall, ".3f"),
                with_error(found.kernel, None, ".3f", 1000),
            ]
        )
    lines = markdown_table(head, cells)
    facts = first.cell.report.protocol
    lines += [
        "",
        f"{first.cell.report.images:,} samples each, seeds from {facts['first_seed']}, labels {facts['labels']}, EMA, "
        f"{facts['precision']}; features {scores.features} {scores.features_hash[:12]} ({scores.dim}, resize "
        f"{scores.resize}); reference {scores.reference} {scores.reference_hash[:12]}. ± is the standard error over "
        "the draw of the images; differences are paired by seed.",
    ]
    notes = dict.fromkeys(note for row in rows for note in row.scores.warnings)
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def _scales(text: str) -> list[float]:
    try:
        scales = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"--guidance {text!r}: give scales such as 1,1.5,2,4") from None
    if not all(0 <= scale < math.inf for scale in scales):
        raise InputError(f"--guidance {text}: scales must be finite and not negative")
    return sorted(set(scales))


def _solvers(command: CompareCommand) -> list[dict[str, Any]]:
    """Sampler and steps of each that --solvers names; without it one that leaves both as they are."""
    if command.solvers and (command.sampler or command.steps):
        raise InputError("--solvers names samplers and their steps; leave --sampler and --steps out")
    found: list[dict[str, Any]] = []
    for text in dict.fromkeys(command.solvers):
        name, colon, steps = text.partition(":")
        if colon and not steps.isdecimal():
            raise InputError(f"--solvers {text}: give a sampler and its steps, such as ab2:10")
        found.append({"sampler": name, "steps": int(steps)} if colon else {"sampler": name})
    return found or [{}]


def _check_alike(models: dict[str, Pipeline]) -> None:
    """InputError unless all models make images of one kind."""
    kinds = {}
    for name, pipeline in models.items():
        data = pipeline.recipe.data
        size = "x".join(map(str, data.shape[-2:]))
        kinds[f"{size}, {data.channels} channels, {pipeline.classes} classes"] = name
    if len(kinds) > 1:
        listed = "; ".join(f"{name}: {kind}" for kind, name in kinds.items())
        raise InputError(f"these models cannot be compared, their images are of different kinds ({listed})")


def _record(row: Row) -> dict:
    return {
        "model": row.cell.model,
        "guidance": row.cell.guidance,
        "scores": row.scores.model_dump(mode="json"),
        "errors": vars(row.errors),
        "difference": row.difference,
        "protocol": row.cell.report.protocol,
        "images": row.cell.report.images,
        "images_hash": row.cell.report.images_hash,
    }


def _titles(cells: Sequence[Cell]) -> list[str]:
    """Each cell's model, with sampler and evaluations where it was sampled with several."""
    solvers = [(cell.model, f"{(of := cell.report.protocol)['sampler']} {of['nfe']}") for cell in cells]
    several = len(set(solvers)) > len({model for model, _ in solvers})
    return [f"{model}, {solver}" if several else model for model, solver in solvers]


def _series(rows: Sequence[Row]) -> list[Series]:
    """A curve for each model and solver: what is traded as guidance rises."""
    found, titles = [], _titles([row.cell for row in rows])
    for title in dict.fromkeys(titles):
        mine = [row for row, its in zip(rows, titles, strict=True) if its == title]
        values: dict[str, list[float | None]] = {
            distance_name(mine[0].scores.features): [row.scores.frechet for row in mine],
            "class accuracy": [row.scores.labels.accuracy if row.scores.labels else None for row in mine],
            "precision": [row.scores.precision for row in mine],
            "recall": [row.scores.recall for row in mine],
            "CLIP score": [row.scores.clip_score for row in mine],
        }
        known = {
            name: [x for x in some if x is not None] for name, some in values.items() if None not in some
        }
        found.append(Series(title, [f"{row.cell.guidance:g}" for row in mine], known))
    return found


def _picture(cells: Sequence[Cell], names: Sequence[str], path: Path) -> None:
    """Least and most guided of every model and solver: the same seeds in the same places."""
    ends, titles = {}, _titles(cells)
    for cell, title in zip(cells, titles, strict=True):
        mine = [other.guidance for other, its in zip(cells, titles, strict=True) if its == title]
        if cell.guidance in (min(mine), max(mine)):
            ends[f"{title}, guidance {cell.guidance:g}"] = cell.images
    rows = min(len(names), MOST_CLASSES) or 1
    columns = min(len(images) for images in ends.values()) // max(len(names), 1)
    panels = [(title, images[: rows * columns]) for title, images in ends.items()]
    side_by_side(panels, list(names[:rows]) or [""], path)
