"""Models compared: same seeds, same labels, same N, same rulers, at several guidance scales.

Each (model, guidance) is a cell, cached in a folder of its own, so a comparison that was stopped goes on
and one more model costs only its own cells. Error bars are over the draw of the images
(`evaluation.bootstrap`); the difference to the first model is paired, seed by seed.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ditkit.errors import InputError
from ditkit.evaluation import (
    Report,
    Scores,
    Statistics,
    check_network,
    frechet_resamples,
    load_statistics,
    npz_images,
    precision_recall,
    save_images,
    save_statistics,
    standard_error,
)
from ditkit.files import first_line
from ditkit.pictures import class_rows
from ditkit.pipeline import Pipeline, load
from ditkit.processes import here
from ditkit.records import read_json, write_json
from ditkit.sampling.config import SamplingRequest
from ditkit.scoring.rulers import Ruler
from ditkit.scoring.samples import collected, keeping, sampled
from ditkit.scoring.score import measure, report_of

COLUMNS = 4  # images of each class kept to be looked at
HALVES = 20  # resamples of precision and recall, which cost more


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Errors:
    """Standard errors over the draw of the images; None where there is no value."""

    frechet: float
    accuracy: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class Cell:
    """One model at one guidance scale."""

    model: str
    guidance: float
    report: Report
    statistics: Sequence[Statistics]
    """By ruler."""
    images: Tensor
    """uint8 (classes · COLUMNS, C, H, W), class after class, to be looked at."""


@dataclass(frozen=True)
class Row:
    """One line of a comparison, by one ruler."""

    cell: Cell
    scores: Scores
    errors: Errors
    difference: tuple[float, float] | None
    """Fréchet distance minus the first model's at the same guidance, and its standard error; None for the
    first model."""


def compare_cell(
    model: str,
    pipeline: Pipeline,
    guidance: float,
    rulers: Sequence[Ruler],
    names: Sequence[str],
    folder: Path,
    *,
    n: int,
    first_seed: int,
    request: SamplingRequest,
) -> Cell:
    """The cell in `folder`, sampled and scored now, with a progress bar, unless what is there was made alike."""
    request = request.but(guidance=guidance)
    samples = sampled(pipeline, n, first_seed=first_seed, request=request, progress=True)
    others = {"weak": weights_of(request.weak), "lower": weights_of(request.lower)}
    wanted = json.loads(
        json.dumps({**samples.protocol, "n": n, "rulers": [_identity(r) for r in rulers], "others": others})
    )
    processes, cell = here(), None
    if processes.first and _read(folder / "wanted.json") == wanted:
        cell = _kept_cell(model, pipeline, guidance, rulers, folder)
    cell = processes.from_first(cell)
    if cell is None:
        kept: list[Tensor] = []
        statistics = measure(keeping(samples, max(pipeline.classes, 1) * COLUMNS, kept), rulers)
        report = report_of(samples, rulers, statistics, names)
        images = collected(kept)
        if processes.first:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "wanted.json").unlink(missing_ok=True)
            _keep(folder, statistics, report, images, wanted)
            cell = _read_cell(model, pipeline, guidance, rulers, folder)
        cell = processes.from_first(cell)
        assert cell is not None
    return cell


def _keep(
    folder: Path, statistics: Sequence[Statistics], report: Report, images: Tensor, wanted: dict
) -> None:
    """Write a cell; wanted.json last, as it is whole then."""
    for k, found in enumerate(statistics):
        save_statistics(folder / f"{k}.npz", found)
    pictures = images.permute(0, 2, 3, 1).numpy()
    save_images(folder / "images.npz", [pictures], len(pictures))
    write_json(folder / "report.json", report.model_dump(mode="json"))
    write_json(folder / "wanted.json", wanted)


def _kept_cell(
    model: str, pipeline: Pipeline, guidance: float, rulers: Sequence[Ruler], folder: Path
) -> Cell | None:
    """What is kept of a cell; None, which is logged, where a file of it is damaged."""
    try:
        return _read_cell(model, pipeline, guidance, rulers, folder)
    except InputError as error:
        log.warning(f"{folder}: the cell is damaged ({first_line(error)}); it is sampled and scored again")
        return None


def _read_cell(
    model: str, pipeline: Pipeline, guidance: float, rulers: Sequence[Ruler], folder: Path
) -> Cell:
    """The cell in a folder. InputError where a file of it is damaged, or is another's."""
    images = torch.cat([some for some, _ in npz_images(folder / "images.npz")])
    report = Report.checked(read_json(folder / "report.json"), str(folder / "report.json"))
    statistics = [load_statistics(folder / f"{k}.npz") for k in range(len(rulers))]
    for found, scores, ruler in zip(statistics, report.scores, rulers, strict=False):
        network = ruler.network
        check_network(found, network.name, network.hash, network.resize, "this comparison")
        if (found.digest, found.count) != (report.images_hash, report.images) or (
            scores.features_hash != network.hash
        ):
            raise InputError(f"{folder}: report.json and the statistics are not of the same images")
    if len(report.scores) != len(rulers):
        raise InputError(f"{folder}: report.json has other networks")
    return Cell(model, guidance, report, statistics, _by_class(images, pipeline.classes))


def rows_of(cells: Sequence[Cell], rulers: Sequence[Ruler], place: int, resamples: int) -> list[Row]:
    """The comparison by the ruler at `place`, with standard errors of so many resamples."""
    ruler = rulers[place]
    spread = {
        id(cell): frechet_resamples(cell.statistics[place].rows, ruler.reference.moments, resamples=resamples)
        for cell in cells
    }
    first = {cell.guidance: cell for cell in reversed(cells) if cell.model == cells[0].model}
    rows = []
    for cell in cells:
        scores, base = cell.report.scores[place], first.get(cell.guidance)
        difference = None
        if base is not None and base is not cell and base.report.images == cell.report.images:
            gap = scores.frechet - base.report.scores[place].frechet
            difference = gap, (spread[id(cell)] - spread[id(base)]).std().item()
        errors = _errors(cell, place, ruler, spread[id(cell)].std().item())
        rows.append(Row(cell, scores, errors, difference))
    return rows


def _errors(cell: Cell, place: int, ruler: Ruler, frechet: float) -> Errors:
    scores, rows = cell.report.scores[place], cell.statistics[place].rows
    accuracy = None
    if scores.labels is not None and (share := scores.labels.accuracy) is not None:
        accuracy = math.sqrt(share * (1 - share) / cell.report.images)  # of a binomial
    if scores.precision is None:
        return Errors(frechet, accuracy, None, None)
    real = ruler.reference.rows
    return Errors(
        frechet,
        accuracy,
        standard_error(
            lambda half: precision_recall(real, rows[half]).precision, len(rows), resamples=HALVES
        ),
        standard_error(lambda half: precision_recall(real, rows[half]).recall, len(rows), resamples=HALVES),
    )


def _by_class(images: Tensor, classes: int) -> Tensor:
    """Balanced labels run 0, 1, 2, ...: sorted class after class."""
    if not classes:
        return images
    labels = torch.arange(len(images)) % classes
    return class_rows(images, labels, min(classes, len(images)), COLUMNS)


def _identity(ruler: Ruler) -> list[str]:
    found = ruler.reference
    return [found.network, found.network_hash, found.resize, found.digest]


def weights_of(model: str | Pipeline | None) -> str | None:
    """The hash of another model's weights that samples depend on."""
    return None if model is None else (load(model) if isinstance(model, str) else model).weights_hash


def _read(file: Path) -> dict | None:
    """A record; None where there is none that can be read."""
    try:
        return read_json(file)
    except InputError:
        return None
