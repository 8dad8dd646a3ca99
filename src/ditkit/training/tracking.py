"""What a run sends to trackers: a hook that follows the files which the run writes anyway.

A tracker gets the lines of log.jsonl, validation.jsonl and scores.jsonl, and the previews. What it has got is kept in
OUT/track/NAME.json with its run's id, so that a run that goes on continues the same tracked run, sends nothing twice, and
sends what was missed: a tracker that was away, or that is chosen only now. No failure of a tracker ends a training.
"""

import io
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from ditkit.config import Section
from ditkit.files import first_line
from ditkit.recipe import Training
from ditkit.records import parse_json, read_json, write_json
from ditkit.signals import Stopped
from ditkit.trackers import TRACKERS, TrackedRun, Tracker, without_secrets
from ditkit.training.schedule import due
from ditkit.training.state import TrainState

log = logging.getLogger(__name__)

FILES = {"train": "log.jsonl", "validation": "validation.jsonl", "scores": "scores.jsonl"}
"""What numbers are called by the file that they are in: "train/loss"."""
PREVIEW, PREVIEWS = "preview", "previews"
EVERY = ("log_images", "preview_images", "validate_images", "score_images")
"""Fields that say when there may be something new."""


class _Numbers(NamedTuple):
    """A line of one of the files."""

    kind: str
    images: int
    values: dict[str, float]


class _Picture(NamedTuple):
    """A preview."""

    kind: str
    images: int
    file: Path


News = Sequence[_Numbers | _Picture]


class Tracking:
    """Sends what a run in the folder `out` writes to the trackers of `config`; used as a context, which closes them."""

    def __init__(self, out: Path, config: Training, name: str, settings: Section):
        """`name` is what trackers call the run, `settings` the recipe that they show."""
        self._out, self._images = out, config.images
        self._every = [every for field in EVERY if (every := getattr(config, field, 0))]
        self._files = {kind: _Follower(out / file) for kind, file in FILES.items()}
        self._sinks = [
            _Sink(tracker, out, name, settings.model_dump(mode="json")) for tracker in config.track
        ]
        self._opened = False

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._send()  # of a run that had nothing left to learn, all that is new to a tracker
        for sink in self._sinks:
            sink.close(failed=kind is not None and not issubclass(kind, Stopped))

    def __call__(self, state: TrainState, before: int, seen: int) -> None:
        """After the first step trackers are opened and get what they missed, afterwards what is due."""
        if not self._sinks:
            return
        if not self._opened:
            self._opened = True
            for sink in self._sinks:
                sink.open()
            self._send()
        elif any(due(every, before, seen, self._images) for every in self._every):
            self._send()

    def _send(self) -> None:
        if self._sinks:
            news = self._news()
            for sink in self._sinks:
                sink.send(news)

    def _news(self) -> list[_Numbers | _Picture]:
        """What is new in the files, and all previews, oldest first."""
        found: list[_Numbers | _Picture] = []
        for kind, file in self._files.items():
            found += [_Numbers(kind, row["images"], _numbers(kind, row)) for row in file.new()]
        pictures = (self._out / PREVIEWS).glob("*.png")
        found += [_Picture(PREVIEW, int(file.stem), file) for file in pictures if file.stem.isdecimal()]
        return sorted(found, key=lambda part: part.images)


class _Sink:
    """One tracker. Its first failure is a warning, after which it is off until the run goes on another time."""

    def __init__(self, tracker: str, out: Path, name: str, settings: dict[str, Any]):
        self._tracker, self._out, self._name, self._settings = tracker, out, name, settings
        self._file = out / "track" / f"{tracker}.json"
        self._run: Tracker | None = None
        self._sent: dict[str, int] | None = None
        self._off = False

    def open(self) -> None:
        """Open the tracked run, if it is not yet."""
        if not self._off and self._run is None:
            with self._guarded():
                self._open()

    def send(self, news: News) -> None:
        """What it has not got yet."""
        if self._off:
            return
        with self._guarded():
            sent = self._read_sent()
            rest = [part for part in news if part.images > sent.get(part.kind, -1)]
            if not rest:
                return
            run = self._run or self._open()
            for part in rest:
                if isinstance(part, _Picture):
                    run.picture(part.kind, part.file, part.images)
                elif part.values:
                    run.scalars(part.values, part.images)
                sent[part.kind] = part.images
            self._write(run.id)

    def close(self, failed: bool) -> None:
        if self._run is not None:
            with self._guarded():
                self._run.close(failed)

    def _open(self) -> Tracker:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        before = read_json(self._file).get("run") if self._file.exists() else None
        run = TrackedRun(self._name, self._file.parent, self._settings, before)
        self._run = TRACKERS[self._tracker].open(run)
        self._read_sent()
        self._write(self._run.id)
        return self._run

    def _read_sent(self) -> dict[str, int]:
        """By kind, after how many images the last was that it got."""
        if self._sent is None:
            self._sent = dict(read_json(self._file)["sent"]) if self._file.exists() else {}
        return self._sent

    def _write(self, run: str) -> None:
        write_json(self._file, {"run": run, "sent": self._sent})

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Around calls of a tracker's package: no failure gets out, and nothing that it prints."""
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                yield
        except Exception as error:  # of any kind: what its package raises is its own business
            if not self._off:
                self._off = True
                log.warning(
                    f"{self._out}: {self._tracker} failed ({without_secrets(first_line(error))}); training goes on without "
                    "it, and it gets what it missed when the run goes on"
                )


class _Follower:
    """Reads what is new in a file of lines that only grows."""

    def __init__(self, path: Path):
        self._path, self._read = path, 0

    def new(self) -> list[dict[str, Any]]:
        """Whole lines since the last call; damaged ones are left out."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        return [row for row in map(_row, whole.splitlines()) if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("images"), int) else None


def _numbers(kind: str, row: dict[str, Any]) -> dict[str, float]:
    """A line's numbers by their names; of the validation loss also those by noise level."""
    return {f"{kind}/{name}": value for name, value in _named(row) if _is_number(value)}


def _named(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if name != "images":
            yield name, value
    for t, loss in zip(row.get("t") or (), row.get("levels") or (), strict=False):
        yield f"t_{t:.2f}", loss


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
