"""One command of ditkit in a process of its own, forked from this one, which has imported torch: a tenth of a second
instead of four. What may happen to it (a signal, a full disk, other limits) is set up in the child."""

import contextlib
import io
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import NamedTuple, TextIO

from ditkit.cli import main

LIMIT = 120  # seconds, after which a command counts as hanging


class Ended(NamedTuple):
    """How a command ended."""

    status: int | None
    """Its exit status, minus the signal's number where one ended it; None: it hung and was killed."""
    out: str
    err: str
    seconds: float

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.err + self.out or (
            self.status is not None and self.status in (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT)
        )

    @property
    def refused(self) -> bool:
        """Whether it ended with one line for the user."""
        return self.status == 2 and any(line.startswith("ditkit: ") for line in self.err.splitlines())


def run(
    argv: Sequence[object],
    *,
    inside: Callable[[], None] | None = None,
    after: tuple[float, int] | None = None,
    limit: float = LIMIT,
) -> Ended:
    """`ditkit ARGV` in a child. `inside` is called there first; `after` is a signal it gets after so many seconds."""
    return call(lambda: main([str(word) for word in argv]), inside=inside, after=after, limit=limit)


def call(
    work: Callable[[], int],
    *,
    inside: Callable[[], None] | None = None,
    after: tuple[float, int] | None = None,
    limit: float = LIMIT,
) -> Ended:
    """A function in a child; its result is the exit status."""
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+b") as out, tempfile.TemporaryFile("w+b") as err:
        child = os.fork()
        if child == 0:
            _be_child(work, inside, out.fileno(), err.fileno())
        status = _wait(child, limit, after)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return Ended(status, *texts, time.monotonic() - begin)


def _be_child(work: Callable[[], int], inside: Callable[[], None] | None, out: int, err: int) -> None:
    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdin, sys.stdout, sys.stderr = (_stream(number) for number in range(3))
        if inside is not None:
            inside()
        status = work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as Python ends a program
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def _stream(number: int) -> TextIO:
    binary = io.FileIO(number, "w" if number else "r", closefd=False)
    buffered = io.BufferedWriter(binary) if number else io.BufferedReader(binary)
    return io.TextIOWrapper(
        buffered, encoding="utf-8", errors="backslashreplace" if number == 2 else "strict"
    )


def _wait(child: int, limit: float, after: tuple[float, int] | None) -> int | None:
    begin, pause = time.monotonic(), 0.002
    while time.monotonic() < begin + limit:
        if after is not None and time.monotonic() >= begin + after[0]:
            os.kill(child, after[1])
            after = None
        done, how = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(how)
        time.sleep(pause)
        pause = 0.002 if after is not None else min(0.05, pause * 1.3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


class Watched:
    """What a child does to files in a folder, counted; at the n-th something happens, before it is done."""

    EVENTS = frozenset(
        {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
    )

    def __init__(self, folder: Path, at: int, happens: Callable[[str, str], None]):
        self._folder, self._at, self._happens = str(folder), at, happens
        self._count = RawValue("i", 0)  # shared with the child

    @property
    def count(self) -> int:
        return self._count.value

    def __call__(self) -> None:
        """Begin; to be called in the child, since a hook cannot be taken away."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if event not in self.EVENTS or not args:
            return
        path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else ""
        if not os.path.abspath(path).startswith(self._folder):
            return
        if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        self._count.value += 1
        if self.count == self._at:
            self._happens(event, path)
