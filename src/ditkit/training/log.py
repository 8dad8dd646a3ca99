"""log.jsonl: one line every so many images, with means since the line before it."""

import logging
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from ditkit.records import append_line, read_lines, write_lines

log = logging.getLogger(__name__)

RISEN = 3
"""Times the lowest loss of a line so far: the two runs that were lost had more than 4 (docs/log.md)."""


NUMBERS = frozenset({"loss", "grad_norm"})
"""What is a number in every line, if need be nan."""


class Log:
    """Collects what a step reports without waiting for the device; `write` makes a line of it."""

    def __init__(self, path: Path, images: int, seconds: float, begun: dict | None = None):
        """Goes on after `images` images and `seconds` of training; later lines are dropped, as they
        will be written again. `begun` is the line that a stopped run had begun."""
        self._path = path
        keep_until(path, images)
        self._images, self._seconds_before, self._start = images, seconds, time.perf_counter()
        self._last = seconds
        self._sums: dict[str, Tensor] = {}
        self._steps: int | Tensor = 0
        if begun is not None:
            self._images, self._last, self._steps = begun["images"], begun["seconds"], begun["steps"]
            self._sums = {
                name: torch.tensor(math.nan if value is None else value)
                for name, value in begun["sums"].items()
            }
        known = [row for row in read_log(path) if not math.isnan(row["loss"])]
        self._lowest = min(known, key=lambda row: row["loss"], default=None)
        self.risen: tuple[dict, dict] | None = None
        """The first line whose loss has risen as that of a run that is lost, and the one with the lowest loss before it."""

    @property
    def seconds(self) -> float:
        """Of training, over all sittings."""
        return self._seconds_before + time.perf_counter() - self._start

    @property
    def begun(self) -> dict:
        """What has come together for the next line; a checkpoint keeps it, so that a resumed run writes the same line."""
        steps = int(self._steps)
        sums = {name: float(value) for name, value in self._sums.items()} if steps else {}
        return {"images": self._images, "seconds": self._last, "steps": steps, "sums": sums}

    def add(self, values: dict[str, Tensor], taken: Tensor) -> None:
        """Scalars of one step; it counts where `taken`, bool (), is true, which is not read here."""
        for name, value in values.items():
            counted = value.where(taken, 0)
            self._sums[name] = self._sums[name].to(value) + counted if name in self._sums else counted
        self._steps = self._steps + taken

    def write(self, images: int, **facts: float) -> dict[str, float]:
        """The line after `images` images: means since the last one, `facts`, and the speed."""
        now = self.seconds
        row: dict[str, float] = {"images": images, "minutes": round(now / 60, 4)}
        begun = self.begun
        row |= {name: value / begun["steps"] for name, value in begun["sums"].items()} or {"loss": math.nan}
        row |= facts | {"images_per_second": round((images - self._images) / (now - self._last), 1)}
        append_line(self._path, row)
        self._sums, self._steps, self._images, self._last = {}, 0, images, now
        self._look_if_risen(row)
        return row

    def _look_if_risen(self, row: dict) -> None:
        lowest = self._lowest
        if math.isnan(row["loss"]):  # every step was left out, which is counted
            return
        if lowest is None or row["loss"] < lowest["loss"]:
            self._lowest = row
        elif row["loss"] > RISEN * lowest["loss"] and self.risen is None:
            self.risen = row, lowest


def keep_until(path: Path, images: int) -> None:
    """Drop the lines after so many images: a run that resumes there will write them again."""
    try:
        write_lines(path, [row for row in read_log(path) if row["images"] <= images])
    except OSError as error:  # a log is not needed to go on
        log.warning(
            f"{path}: cannot be cut back ({error.strerror}); lines of images that are seen again stand twice"
        )


def read_log(path: Path) -> list[dict]:
    """The lines of a run's log.jsonl, or of another file of lines, oldest first, up to the first that is damaged; a
    number that was not finite is nan."""
    rows = []
    for row in read_lines(path):
        if not isinstance(row.get("images"), int):
            log.warning(f"{path}: a line that does not say its images; it and what follows are left out")
            break
        rows.append(
            {name: math.nan if value is None and name in NUMBERS else value for name, value in row.items()}
        )
    return rows
