"""Cells: the trainings a study is made of, each scored at some points, cached and restartable.

A cell is a recipe and the points at which it is scored. Its result is one JSON file, written after every
point; its training is an ordinary run. What is there is not done again, and a stopped study goes on with
the same command. Several processes on the same folder share the cells: each claims one by a lock. A cell that
needs another's network waits for it, and makes it where only its record is left.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from filelock import FileLock, Timeout
from pydantic import Field

from ditkit.errors import InputError
from ditkit.pipeline import Pipeline, load
from ditkit.recipe import Recipe
from ditkit.records import read_json, write_json
from ditkit.sampling.config import SamplingConfig, SamplingRequest
from ditkit.scoring import Ruler, evaluate, rulers, sampled, software
from ditkit.training import train
from ditkit.training.log import read_log

log = logging.getLogger(__name__)

Results = Mapping[str, dict]
"""The results of a study: a cell's name -> its record, as written."""


class Point(SamplingConfig):
    """Where a cell is scored: after so many images of training, by samples drawn so."""

    images: Annotated[int, Field(ge=1)]
    """Training images seen."""
    n: Annotated[int, Field(ge=2)] = 1000
    """Samples, of seeds 0 .. n - 1, the same number of every class."""
    captions: Literal["held-out", "training"] = "held-out"
    """Whose prompts to sample, where there are texts. Samples of training captions can be like the reference itself."""

    @property
    def how(self) -> dict[str, Any]:
        """The settings that are set; the others are as the cell's recipe has them. Unguided by default."""
        settings = self.model_dump(include=set(SamplingConfig.model_fields), exclude_unset=True)
        return {"sampler": self.sampler, "guidance": self.guidance} | settings

    @property
    def key(self) -> str:
        settings = {"steps": "adaptive"} | self.how
        sampler, steps, guidance = (settings.pop(name) for name in ("sampler", "steps", "guidance"))
        settings |= self.model_dump(include={"captions"}, exclude_unset=True)
        choices = "".join(f", {name} {value}" for name, value in settings.items())
        return f"{self.images} images, {sampler} {steps}, guidance {guidance:g}, n {self.n}{choices}"


class Trained(NamedTuple):
    """The network of another cell."""

    name: str
    recipe: Recipe


class Cell(NamedTuple):
    recipe: Recipe
    points: tuple[Point, ...]
    measure: Callable[..., dict[str, Any]] | None = None
    """Called once with the trained network's pipeline, and the lower levels' as `Pipeline.generate` takes it; the record
    keeps its result as "measured"."""
    features: str = "classifier"
    """The network to score with, as in `ditkit eval`."""
    inner: Trained | None = None
    """What the training starts from, with levels put around it."""
    lower: Trained | None = None
    """For a model of a cascade: what makes the lower levels of its samples."""
    lower_noise: float = 0.0
    """Time of the noise that is added to the lower levels."""


def alike(cells: Mapping[str, Cell], compiled: bool) -> dict[str, Cell]:
    """The cells with all networks compiled or none, so that their times can be compared, but for recipes that say which."""

    def chosen(recipe: Recipe) -> Recipe:
        choice = "on" if compiled else "off"
        return recipe.replace(train={"compile": choice}) if recipe.train.compile == "auto" else recipe

    def other(trained: Trained | None) -> Trained | None:
        return trained and trained._replace(recipe=chosen(trained.recipe))

    return {
        name: cell._replace(recipe=chosen(cell.recipe), inner=other(cell.inner), lower=other(cell.lower))
        for name, cell in cells.items()
    }


def run_cells(
    cells: Mapping[str, Cell], results: Path, runs: Path, device: torch.device, *, until_all: bool = False
) -> None:
    """Train and score every cell that is not finished and not being worked on by another process; with `until_all` wait for
    those, too."""
    for folder in (results, runs):
        folder.mkdir(parents=True, exist_ok=True)
    known: dict[str, list[Ruler]] = {}
    others: list[str] = []
    for name, cell in cells.items():
        try:
            with FileLock(runs / f"{name}.lock", blocking=False):
                _run_cell(name, cell, results / f"{name}.json", runs / name, device, known)
        except Timeout:
            log.info(f"{name}: another process is at it")
            others.append(name)
    for name in others if until_all else ():
        with FileLock(runs / f"{name}.lock"):  # and where it failed there, it is made here
            _run_cell(name, cells[name], results / f"{name}.json", runs / name, device, known)


def read_cells(cells: Mapping[str, Cell], results: Path) -> Results:
    """The records of the cells that have one; `finished` says whether every point is there."""
    found = {}
    for name, cell in cells.items():
        file = results / f"{name}.json"
        if file.exists():
            record = _read(file)
            scored = all(point.key in record["scores"] for point in cell.points)
            record["finished"] = scored and (cell.measure is None or "measured" in record)
            found[name] = record
    return found


def _read(file: Path) -> dict[str, Any]:
    """A cell's record. InputError where it is damaged."""
    record = read_json(file)
    if not isinstance(record.get("scores"), dict):
        raise InputError(
            f"{file}: it is no record of a cell; move it away, and the study scores the cell again"
        )
    return record


def _run_cell(
    name: str, cell: Cell, file: Path, run: Path, device: torch.device, known: dict[str, list[Ruler]]
) -> None:
    record = _read(file) if file.exists() else {"scores": {}}
    missing = [point for point in cell.points if point.key not in record["scores"]]
    unmeasured = cell.measure is not None and "measured" not in record
    last = cell.recipe.train.images
    if not missing and not unmeasured:
        return
    inner = cell.inner and _trained(cell.inner, run.parent, device)
    others: dict[str, Any] = {}
    if cell.lower:
        lower = load(_trained(cell.lower, run.parent, device), device)
        if lower.recipe.train.compile == "on":
            lower.compile()
        others = {"lower": lower, "lower_noise": cell.lower_noise}
    for images in sorted({point.images for point in missing} | ({last} if unmeasured else set())):
        log.info(f"{name}: {images:,} images")
        torch.compiler.reset()  # every network of a process compiles anew; the cache has a limit
        train(
            _sharing(cell.recipe, run).replace(train={"images": images}), run, device=device, init_inner=inner
        )
        pipeline = load(run, device)
        if cell.recipe.train.compile == "on":
            pipeline.compile()
        rows = read_log(run / "log.jsonl")
        record |= {
            "recipe": cell.recipe.model_dump(mode="json"),
            "images_per_second": sorted(row["images_per_second"] for row in rows)[len(rows) // 2],
            "loss": rows[-1]["loss"],
            "device": str(device),
            "threads": torch.get_num_threads(),
            "software": software(),
        }
        for point in missing:
            if point.images == images:
                record["scores"][point.key] = _score(pipeline, point, cell.features, others, known)
                write_json(file, record)
        if cell.measure is not None and unmeasured and images == last:
            record["measured"] = cell.measure(pipeline, **others)
            write_json(file, record)


def _sharing(recipe: Recipe, run: Path) -> Recipe:
    """The recipe with the embeddings of captions in one place for all cells."""
    return recipe.replace(train={"texts": run.parent / "text"}) if recipe.text else recipe


def _trained(other: Trained, runs: Path, device: torch.device) -> Path:
    """Its finished run. Where another process is at it, this one waits."""
    run = runs / other.name
    with FileLock(runs / f"{other.name}.lock"):
        torch.compiler.reset()
        train(_sharing(other.recipe, run), run, device=device)
    return run


def _score(
    pipeline: Pipeline, point: Point, features: str, others: dict[str, Any], known: dict[str, list[Ruler]]
) -> dict[str, Any]:
    data = pipeline.recipe.data
    ruler = f"{features} {data.kind} {data.size}"
    if ruler not in known:
        known[ruler] = rulers([features], data, embed=pipeline.embed if pipeline.recipe.text else None)
    request = SamplingRequest.of({**point.how, **others, "precision": pipeline.recipe.train.precision})
    samples = sampled(pipeline, point.n, captions=point.captions, request=request, progress=True)
    found = evaluate(samples, known[ruler]).first
    return {
        "images": point.images,
        "n": point.n,
        **point.how,
        "nfe": samples.protocol["nfe"],
        "frechet": found.frechet,
        "accuracy": found.labels.accuracy if found.labels else None,
        **({"captions": point.captions, "retrieval": found.retrieval} if pipeline.recipe.text else {}),
        "features": found.features_hash,
    }
