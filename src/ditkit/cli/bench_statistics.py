"""`ditkit bench --statistics`: what scores cost beyond the feature pass."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ditkit.cli.measured import check_record, machine, threads, write
from ditkit.cli.parsing import parse
from ditkit.config import Section
from ditkit.evaluation import (
    Features,
    Moments,
    frechet_distance,
    frechet_error,
    gather,
    kernel_distance,
    precision_recall,
)
from ditkit.evaluation.inception_score import inception_score
from ditkit.scoring import software

WIDTHS = {"pooled": 2048, "logits": 1008, "spatial": 2023}  # of the FID Inception
SIDE, BATCH = 64, 64  # of the images, which are hashed


class StatisticsCommand(Section):
    """Time the mathematics of a report of N images in Inception's dimensions: statistics of both sets, FID,
    sFID, Inception Score, precision and recall, KID, and the error bars of `ditkit compare` in 64 dimensions.

    The features are random numbers, made beforehand: no network runs.
    """

    n: Annotated[int, Field(ge=10)] = 10_000
    """Images in each of the two sets."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of torch; as many as torch chooses by default."""
    out: Path | None = None
    """Write the record to this JSON file."""
    replace: bool = False
    """Write over a file that is there."""


class Given:
    """A `FeatureNetwork` whose features are all known beforehand."""

    name, hash, resize, dim = "known", "0" * 64, "none", WIDTHS["pooled"]
    classes: int | None = None

    def __init__(self, count: int, shift: float):
        stream = torch.Generator().manual_seed(0)
        mixing = torch.randn(self.dim, self.dim, generator=stream) * torch.logspace(0, -2, self.dim) / 10
        known = {name: torch.randn(count, width, generator=stream) for name, width in WIDTHS.items()}
        self._known = {**known, "pooled": (known["pooled"] @ mixing + shift).relu()}
        self._done = 0

    def __call__(self, images: Tensor) -> Features:
        rows = slice(self._done, self._done + len(images))
        self._done = rows.stop
        return Features(**{name: values[rows] for name, values in self._known.items()})


def run(argv: list[str]) -> None:
    command = parse(StatisticsCommand, argv, "bench --statistics")
    check_record(command.out, command.replace)
    with threads(command.threads):
        seconds = _measure(command.n)
        record: dict[str, Any] = {
            "machine": machine(),
            "software": software(),
            "n": command.n,
            "seconds": seconds,
        }
    for name, value in {**seconds, "together": sum(seconds.values())}.items():
        print(f"{name:52s}{value:8.2f} s")
    print(f"{command.n:,} images in each set, {machine()['cpu']}, {record['machine']['threads']} threads")
    write(record, command.out)


def _measure(count: int) -> dict[str, float]:
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable):
        start = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - start
        return result

    first, second = Given(count, 0.4), Given(count, 0.42)
    a = timed("statistics of the reference", lambda: gather(_images(count), first))
    b = timed("statistics of the samples", lambda: gather(_images(count), second))
    timed("FID, 2,048 features", lambda: frechet_distance(b.moments, a.moments))
    timed("sFID, 2,023 features", lambda: frechet_distance(b.spatial, a.spatial))
    timed("Inception Score", lambda: inception_score(b.scores))
    timed("precision and recall", lambda: precision_recall(a.rows, b.rows))
    timed("KID, 100 subsets of 1,000", lambda: kernel_distance(a.rows, b.rows))
    few = b.rows[:2000, :64]
    timed(
        "error bar of FD, 64 features, 100 x 2,000 images",
        lambda: frechet_error(few, Moments.of(a.rows[:, :64])),
    )
    return seconds


def _images(count: int) -> Iterator[tuple[Tensor, None]]:
    images = torch.zeros(BATCH, 3, SIDE, SIDE, dtype=torch.uint8)
    for start in range(0, count, BATCH):
        yield images[: min(BATCH, count - start)], None
