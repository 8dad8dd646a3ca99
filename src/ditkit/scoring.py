"""Scoring with a data set's own ruler: its frozen classifier, its training split, its floor.

`evaluation` knows mathematics and modules only; this is where data and pipelines meet it.
"""

import contextlib
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from ditkit.data import DataSection, load_all
from ditkit.errors import InputError
from ditkit.evaluation import (
    Classifier,
    Moments,
    Report,
    bundled_classifier,
    evaluate,
    load_classifier,
    reference_moments,
)
from ditkit.pipeline import Pipeline

BATCH = 500


@dataclass(frozen=True)
class Ruler:
    """What every score of one data set is measured with."""

    classifier: Classifier
    reference: Moments
    """Of the training split."""
    floor: Report | None
    """The held-out split scored like samples; None where the data has no such split."""


def ruler(data: DataSection, kind: str, classifier_file: Path | None = None) -> Ruler:
    """The ruler of a data set, with its reference computed from the images.

    InputError when no classifier comes with ditkit for this data and none is given.
    """
    classifier = load_classifier(classifier_file) if classifier_file else bundled_classifier(kind)
    if classifier is None:
        raise InputError(
            f"no frozen classifier comes with ditkit for data {kind!r}; make one with "
            f"`ditkit classifier {kind} --out FILE` and give it as --classifier FILE"
        )
    reference = reference_moments(in_batches(*load_all(data, "train")), classifier)
    try:
        held_out = load_all(data, "test")
    except InputError:
        return Ruler(classifier, reference, None)
    return Ruler(classifier, reference, evaluate(in_batches(*held_out), classifier, reference))


def score(pipeline: Pipeline, measure: Ruler, n: int, *, first_seed: int = 0, **sampling) -> Report:
    """Sample `n` images, balanced over the classes, and score them; `sampling` as in `generate`."""
    labels = balanced_labels(n, pipeline.classes) if pipeline.classes else None
    cond = {} if labels is None else {"label": labels}
    images = pipeline.generate(cond, seeds=range(first_seed, first_seed + n), progress=True, **sampling)
    return evaluate(in_batches(images, labels), measure.classifier, measure.reference)


def in_batches(images: Tensor, labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A whole set, BATCH images at a time."""
    for start in range(0, len(images), BATCH):
        rows = slice(start, start + BATCH)
        yield images[rows], None if labels is None else labels[rows]


def balanced_labels(count: int, classes: int) -> Tensor:
    """0, 1, ..., classes - 1, 0, 1, ...: `count` labels."""
    return torch.arange(count) % classes


def software() -> dict[str, str]:
    """Versions, and the commit where ditkit runs from its own git checkout."""
    found = {"ditkit": version("ditkit"), "torch": torch.__version__}
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        top = Path(_git("rev-parse", "--show-toplevel"))
        if top / "src" / "ditkit" == Path(__file__).parent:  # not a project that ditkit is installed in
            found["commit"] = _git("describe", "--always", "--dirty")
    return found


def _git(*arguments: str) -> str:
    """What git says of the folder of this file."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def table(rows: Iterable[tuple[str, Report]], classes: tuple[str, ...] = ()) -> str:
    """Scores as aligned text: images, Fréchet distance, class accuracy."""
    lines = [f"{'':24s}{'images':>8s}{'FD':>10s}{'accuracy':>10s}"]
    for title, report in rows:
        accuracy = "" if report.accuracy is None else f"{report.accuracy:.1%}"
        lines.append(f"{title:24s}{report.images:8d}{report.frechet:10.3f}{accuracy:>10s}")
    return "\n".join(lines)
