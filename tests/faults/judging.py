"""What a command may do with a wrong input: use it, or refuse it in one line; within its memory, and harmlessly printed."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

from faults.commands import Ended, call, run
from faults.tally import Case

MEMORY = 3 << 30  # bytes that a command may have beyond what it is forked with


def little_memory(beyond: int = MEMORY) -> None:
    """Limit this process to so many bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + beyond
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def limited(argv: list[object], folder: Path) -> Ended:
    """`ditkit ARGV` with little memory, in a working folder."""
    return run(argv, inside=lambda: _begin(folder))


def limited_call(work: Callable[[], int], folder: Path) -> Ended:
    return call(work, inside=lambda: _begin(folder))


def _begin(folder: Path) -> None:
    little_memory()
    os.chdir(folder)


def fault(ended: Ended) -> str:
    """What is wrong with how a command ended; "" where it used its input, or refused it in one line."""
    if ended.status is None or ended.traceback:
        return "hung" if ended.status is None else "traceback"
    if "\x1b" in ended.out + ended.err:
        return f"an escape character is printed: {ended.err[-300:]!r}"
    if ended.status == 0:
        return ""
    lines = ended.err.splitlines()
    if not ended.refused:
        return f"status {ended.status}: {ended.err[-300:]}"
    if not lines[-1].startswith("ditkit: "):
        return f"refused in several lines: {ended.err[-300:]}"
    return "" if len(lines[-1]) < 10_000 else f"refused in {len(lines[-1]):,} characters"


def judge(case: Case, ended: Ended, wrong: str = "") -> None:
    """Judge one command: survived where it ended well, refused where it ended with one line, lost otherwise."""
    case.saw(ended)
    found = fault(ended) or wrong
    if found:
        case.judge(found)
    else:
        case.judge("" if ended.status == 0 else "refused", refused=True)
