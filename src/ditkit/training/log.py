"""log.jsonl: one line every so many images, with means since the line before it."""

import json
import math
import time
from pathlib import Path

from torch import Tensor


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
        """The line after `images` images: means since the last one, `facts`, and the speed."""
        now = self.seconds
        row: dict[str, float] = {"images": images, "minutes": round(now / 60, 4)}
        row |= {name: float(value) / self._steps for name, value in self._sums.items()} or {"loss": math.nan}
        row |= facts | {"images_per_second": round((images - self._images) / (now - self._last), 1)}
        append(self._path, row)
        self._sums, self._steps, self._images, self._last = {}, 0, images, now
        return row


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
