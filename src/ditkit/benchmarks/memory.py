"""The time and the memory of a training step, in a process of its own: what `costs` predicts is compared with these."""

import gc
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ditkit.benchmarks.latents import TINY
from ditkit.benchmarks.ours import step_of
from ditkit.errors import InputError
from ditkit.heap import keep_freed_memory
from ditkit.timing import seconds

STATUS = Path("/proc/self/status")
FORGET = Path("/proc/self/clear_refs")
"""Where 5 is written, the highest resident set so far is forgotten (proc(5))."""

Built = Callable[[], tuple[Any, Callable[[], object]]]
"""Makes a network and what is to be timed of it; for another process one that can be pickled."""


class Measured(NamedTuple):
    """A training step on one thread."""

    seconds: list[float]
    """Of processor time, one per step: the time on an idle machine, whatever else runs here."""
    memory: int
    """Bytes: the peak of the resident set over its size before the network was built."""


def memory_known() -> bool:
    """Whether the system reports a process's memory; Linux does, in /proc."""
    return STATUS.exists()


def check_memory_known() -> None:
    """InputError where it does not."""
    if not memory_known():
        raise InputError(f"bench `cost` reads {STATUS}, which is not there: it needs Linux")


def measure_step(build: Built, rounds: int) -> Measured:
    """`rounds` training steps, after a first one, of what `build` makes, in a new process, on one thread."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure_here, build, rounds).result()


def _measure_here(build: Built, rounds: int) -> Measured:
    keep_freed_memory()  # as every command does
    torch.set_num_threads(1)
    step_of(TINY, 2, "auto")[1]()  # loads the libraries' code, which is no cost of the network
    gc.collect()
    before = resident()
    _, step = build()
    step()
    spent = [seconds(step, time.process_time) for _ in range(rounds)]
    return Measured(spent, peak() - before)


def resident() -> int:
    """Bytes resident now."""
    return _memory("VmRSS")


def peak() -> int:
    """Bytes resident at most so far."""
    return _memory("VmHWM")


def forget_peak() -> None:
    """The peak is what is resident now, from now on; where the system forbids it, it stays."""
    with suppress(OSError):
        FORGET.write_text("5", encoding="utf-8")


def _memory(key: str) -> int:
    """Unlike getrusage's, of this process alone."""
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])
