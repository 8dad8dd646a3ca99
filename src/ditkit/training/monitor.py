"""What is measured while training: the validation loss by noise level, and scores of samples.

The training loss is a poor guide: its noise, from drawing a time and a noise for every image, hides
what the network learns. Here the same held-out images get the same noise at the same times every time, and
the noise does not depend on the run, so curves of different runs can be laid over each other.

validation.jsonl and scores.jsonl get a line each time, validation.png and scores.png are drawn anew.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ditkit.conditions import conditions
from ditkit.data import Source, spread
from ditkit.data.buckets import places_by_size
from ditkit.device import autocast
from ditkit.errors import InputError, NotFinite
from ditkit.pipeline import Pipeline
from ditkit.plots import level_curves, score_curves
from ditkit.processes import here
from ditkit.randomness import Purpose, generator
from ditkit.records import append_line
from ditkit.scoring import Ruler, evaluate, rulers, sampled
from ditkit.training.log import keep_until, read_log
from ditkit.training.preview import save_preview
from ditkit.training.schedule import due

log = logging.getLogger(__name__)

VALIDATION, SCORES = "validation.jsonl", "scores.jsonl"
IMAGES, LEVELS = 200, 10  # of the validation loss: 2,000 evaluations


class Monitor:
    """Measures a run's moving average; made once, before the first step."""

    def __init__(
        self,
        pipeline: Pipeline,
        out: Path,
        seen: int,
        training: Source,
        ready: Callable[[], AbstractContextManager] = nullcontext,
    ):
        """Goes on after `seen` images of `training`. `pipeline` holds the moving average, which training goes on to
        change, and which can be run within `ready()`. Of several processes each makes one; the first writes.

        InputError when scores are wanted and cannot be made: no such features, no classifier for the data.
        """
        self._pipeline, self._out, self._ready = pipeline, out, ready
        config = pipeline.recipe.train
        looks = config.validate_images and here().first
        self._held_out = _validation_images(pipeline, training) if looks else []
        self._rulers: list[Ruler] = []
        for lines in (out / VALIDATION, out / SCORES):
            if lines.exists() and here().first:
                keep_until(lines, seen)
        if config.score_images:
            try:
                self._rulers = rulers([config.score_features], pipeline.recipe.data, pipeline.device)
            except InputError as error:
                raise InputError(str(error).replace("`features`", "`train.score_features`")) from None

    def measure(self, before: int, seen: int) -> None:
        """What is due after the step from `before` to `seen` images: a preview, the validation loss, scores."""
        for every, look in self._looks:
            if every and due(every, before, seen, self._pipeline.recipe.train.images):
                self._look(look, seen)

    def catch_up(self, seen: int) -> None:
        """What was due when the run stopped after `seen` images, if that was not finished."""
        previews = [int(file.stem) for file in self._previews.glob("*.png") if file.stem.isdecimal()]
        validated, scored = (
            [row["images"] for row in read_log(self._out / name)] for name in (VALIDATION, SCORES)
        )
        last = self._pipeline.recipe.train.images
        missed = [
            bool(every) and due(every, max(done, default=0), seen, last) and seen not in done
            for (every, _), done in zip(self._looks, (previews, validated, scored), strict=True)
        ]
        for (_, look), is_due in zip(self._looks, here().from_first(missed), strict=True):
            if is_due:
                self._look(look, seen)

    @property
    def _looks(self) -> tuple[tuple[int, Callable[[int], None]], ...]:
        """After how many images each way of looking at the run is due, 0 for never."""
        config = self._pipeline.recipe.train
        alone = self._pipeline.transport.cascade is None  # otherwise another model makes the lower levels
        return (
            (config.preview_images * alone, self.preview),
            (config.validate_images, self.validate),
            (config.score_images, self.score),
        )

    def _look(self, look: Callable[[int], None], seen: int) -> None:
        """Nothing that is only looked at ends a run: an average of few steps may not make images yet, a disk be full."""
        try:
            with self._ready():
                look(seen)
        except NotFinite as error:
            log.warning(f"{self._out}: after {seen:,} images: {error}; training goes on")
        except OSError as error:
            log.warning(
                f"{error.filename or self._out}: could not be written ({error.strerror}); training goes on"
            )

    @property
    def _previews(self) -> Path:
        return self._out / "previews"

    def preview(self, seen: int) -> None:
        """Draw the samples of previews/; the first process does."""
        if not here().first:
            return
        save_preview(self._pipeline, self._previews / f"{seen:012d}.png")

    def validate(self, seen: int) -> None:
        """Add a line to validation.jsonl: the loss at LEVELS times, from data to noise; the first process does."""
        if not self._held_out or not here().first:
            return
        total = sum(len(group.images) for group in self._held_out)
        losses = [0.0] * LEVELS
        for group in self._held_out:
            t, own = validation_loss(self._pipeline, *group)
            share = len(group.images) / total
            losses = [loss + share * part for loss, part in zip(losses, own, strict=True)]
        row = {"images": seen, "loss": sum(losses) / len(losses), "t": t, "levels": losses}
        append_line(self._out / VALIDATION, row)
        level_curves(
            read_log(self._out / VALIDATION), self._out / "validation.png", self._pipeline.recipe.name
        )

    def score(self, seen: int) -> None:
        """Add a line to scores.jsonl: samples of seeds 0, 1, ... as the recipe samples them, which all processes share."""
        config = self._pipeline.recipe.train
        samples = sampled(self._pipeline, config.score_samples, precision=config.precision)
        report = evaluate(samples, self._rulers)
        if not here().first:
            return
        scores = report.first
        row = {
            "images": seen,
            "frechet": scores.frechet,
            "accuracy": scores.labels.accuracy if scores.labels else None,
            "precision": scores.precision,
            "recall": scores.recall,
            "samples": report.images,
            "features": scores.features_hash,
            "nfe": report.protocol["nfe"],
            "guidance": report.protocol["guidance"],
        }
        append_line(self._out / SCORES, row)
        score_curves(read_log(self._out / SCORES), self._out / "scores.png", self._pipeline.recipe.name)


@torch.no_grad()
def validation_loss(
    pipeline: Pipeline,
    images: Tensor,
    labels: Tensor | None,
    captions: Sequence[str] | None = None,
    numbers: Sequence[int] | None = None,
) -> tuple[list[float], list[float]]:
    """Times (LEVELS,) and the mean loss of uint8 images (N, C, H, W), or clips, at each, with their labels and captions
    (N,).

    The times are evenly spread over the transport's interval, whatever its time law; image n, the n-th or as `numbers`
    says, has the same noise at every time and in every run.
    """
    recipe, device = pipeline.recipe, pipeline.device
    net, codec = pipeline.backbone, pipeline.codec
    spread = recipe.transport.model_copy(update={"time_law": "uniform"})
    layout = codec.layout(*images.shape[2:])
    numbers = numbers or range(len(images))
    noise = _noise("validate", numbers, layout.shape)
    posterior = _noise("codec", numbers, layout.shape).to(device) if codec.random else None
    x0 = codec.encode(images.to(device), posterior)
    cond = conditions(labels, captions, pipeline.read, device)
    half = torch.full((len(images), 3), 0.5, dtype=torch.float64)  # in the middle of what can be known
    times, losses = [], []
    for level in range(LEVELS):
        u = torch.full((len(images),), (level + 0.5) / LEVELS, dtype=torch.float64)
        t = spread.times(u, layout)
        own, learned = spread.known_parts(t, half, layout)
        with autocast(device, recipe.train.precision):
            terms = recipe.transport.losses(
                net, x0, cond, t=own, eps=noise.to(device), layout=layout, weights=learned
            )
        times.append(t[0].item())
        losses.append(terms["loss"].float().mean().item())
    return times, losses


def _noise(purpose: Purpose, numbers: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    rows = [generator(0, n, purpose).standard_normal(shape, dtype=np.float32) for n in numbers]
    return torch.from_numpy(np.stack(rows))


class _Group(NamedTuple):
    """Validation images of one size, as `validation_loss` takes them."""

    images: Tensor
    labels: Tensor | None
    captions: list[str] | None
    numbers: list[int]


def _validation_images(pipeline: Pipeline, training: Source) -> list[_Group]:
    """Held-out images, evenly spread, labels and captions, by size; training images where nothing is held out."""
    recipe, data = pipeline.recipe, pipeline.recipe.data
    source: Source
    try:
        source = data.open("test")
    except InputError:
        log.info("validation loss: this data has no held-out part, training images are used")
        # Opened once more only where training reads no images: looking for broken files can take long.
        source = data.open("train") if training.alone is None else training.alone
    places = spread(len(source), IMAGES)
    by_size = {data.shape: list(range(len(places)))}
    if data.aspect == "native":
        native = source.sizes(recipe.multiple)
        by_size = places_by_size([native[place] for place in places])
    groups = []
    for size, numbers in by_size.items():
        picks = [places[n] for n in numbers]
        labels = source.labels[picks] if pipeline.classes and source.labels is not None else None
        captions = [source.captions[k] for k in picks] if recipe.text and source.captions else None
        groups.append(_Group(source.read(picks, size=size), labels, captions, numbers))
    return groups
