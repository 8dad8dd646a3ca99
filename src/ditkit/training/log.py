"""log.jsonl: one line every so many images, with means since the line before it."""

import json
import logging
import math
import time
from pathlib import Path

from torch import Tensor

log = logging.getLogger(__name__)

RISEN = 3
"""Times the lowest loss of a line so far: the two runs that were lost had more than 4 (docs/log.md)."""


class Log:
    """Collects what a step reports without waiting for the device; `write` makes a line of it."""

    def __init__(self, path: Path, images: int, seconds: float):
        """Goes on after `images` images and `seconds` of training; later lines are dropped, as they
        will be written again."""
        self._path = path
        keep_until(path, images)
        self._images, self._seconds_before, self._start = images, seconds, time.perf_counter()
        self._last = seconds
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        known = [row for row in read_log(path) if not math.isnan(row["loss"])]
        self._lowest = min(known, key=lambda row: row["loss"], default=None)
        self._warned = False

    @property
    def seconds(self) -> float:
        """Of training, over all sittings."""
        return self._seconds_before + time.perf_counter() - self._start

    def add(self, values: dict[str, Tensor]) -> None:
        """Scalars of one step."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1

    def write(self, images: int, **facts: float) -> dict[str, float]:
        """The line after `images` images: means since the last one, `facts`, and the speed. Says so, once, when the loss
        has risen as that of a run that is lost."""
        now = self.seconds
        row: dict[str, float] = {"images": images, "minutes": round(now / 60, 4)}
        row |= {name: float(value) / self._steps for name, value in self._sums.items()} or {"loss": math.nan}
        row |= facts | {"images_per_second": round((images - self._images) / (now - self._last), 1)}
        append(self._path, row)
        self._sums, self._steps, self._images, self._last = {}, 0, images, now
        self._warn_if_risen(row)
        return row

    def _warn_if_risen(self, row: dict) -> None:
        lowest = self._lowest
        if math.isnan(row["loss"]):  # every step was left out, which is counted
            return
        if lowest is None or row["loss"] < lowest["loss"]:
            self._lowest = row
        elif row["loss"] > RISEN * lowest["loss"] and not self._warned:
            self._warned = True
            log.warning(
                f"{self._path.parent}: after {row['images']:,} images the loss is {row['loss']:.3g}; it was "
                f"{lowest['loss']:.3g} after {lowest['images']:,}. Runs in which that was seen did not recover: stop it, and train anew "
                "with a lower --train.lr or --train.precision fp32"
            )


def append(path: Path, row: dict) -> None:
    """One more line."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def keep_until(path: Path, images: int) -> None:
    """Drop the lines after so many images: a run that resumes there will write them again."""
    rows = [row for row in read_log(path) if row["images"] <= images]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_log(path: Path) -> list[dict]:
    """The lines of a run's log.jsonl, or of another file of lines, oldest first."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
