"""Disks: one that is full at some write, that turns read-only, that loses a file's name; files that cannot be deleted.
The command must end with one line and leave what was finished; run again on a sound disk, it leaves what an
undisturbed one leaves."""

import contextlib
import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.commands import Ended, Watched, run
from faults.kills import given_again, measure
from faults.tally import Case, Tally
from faults.verbs import command, fresh, undisturbed

ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "broken": errno.EIO, "forbidden": errno.EACCES}


def _failing(number: int) -> Callable[[str, str], None]:
    def fail(event: str, path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    return fail


def fail(name: str, made: Path, count: int, seed: int) -> Tally:
    """`count` runs of a verb in which one thing done to a file fails."""
    tally = Tally(f"disks: {name}")
    draw = random.Random(f"{seed} {name} disk")
    expected = undisturbed(name, made)
    events, _ = measure(name, made)
    for number in range(count):
        out = fresh(made)
        at = draw.randint(1, events)
        kind = draw.choice(sorted(ERRORS))
        with tally.case(f"seed {seed}, case {number}, {kind} at event {at} of {events}") as case:
            first = case.saw(run(command(name, made, out), inside=Watched(out, at, _failing(ERRORS[kind]))))
            _judge(case, first, name, made, out, expected)
    return tally


def _judge(case: Case, first: Ended, name: str, made: Path, out: Path, expected: dict[str, str]) -> None:
    """Judge a command that met a fault, by the same run again. Lines of a log and pictures, which a run does not need, may
    be missing after a warning."""
    optional = (".jsonl", ".png") if "could not be written" in first.err else ()
    wrong = given_again(case, name, made, out, expected, optional)
    if first.status != 0 and not first.refused:
        wrong = f"status {first.status}: {first.err[-300:]}"
    case.judge(wrong)


def fill(name: str, made: Path, count: int, seed: int) -> Tally:
    """`count` runs of a verb on a file system of a few hundred kB, then on the same with room. Needs the right to
    mount one; without it nothing is tried."""
    tally = Tally(f"full disk: {name}")
    draw = random.Random(f"{seed} {name} full")
    expected = undisturbed(name, made)
    needed = sum(file.stat().st_size for file in (made / "out").rglob("*") if file.is_file()) // 1024
    for number in range(count):
        out = fresh(made)
        size = draw.randint(8, max(16, needed))
        with small_disk(out, size) as grow:
            if grow is None:
                return tally
            with tally.case(f"seed {seed}, case {number}, {size} kB of {needed}") as case:
                first = case.saw(run(command(name, made, out)))
                grow()
                _judge(case, first, name, made, out, expected)
    return tally


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[], None] | None]:
    """A file system of so many kB at the folder, and what gives it 64 MB; None where none can be mounted."""
    if shutil.which("mount") is None or os.geteuid() != 0 or not _mount(folder, f"size={kilobytes}k"):
        yield None
        return
    try:
        yield lambda: _check(_mount(folder, "remount,size=64m"))
    finally:
        subprocess.run(["umount", "-l", folder], check=False, capture_output=True)


def _mount(folder: Path, options: str) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False, capture_output=True
    )
    return done.returncode == 0


def _check(there: bool) -> None:
    if not there:
        raise RuntimeError("the file system cannot be made larger")
