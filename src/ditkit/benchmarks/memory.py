"""The time and the memory of a training step, in a process of its own: what `costs` predicts is compared with these."""

import gc
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ditkit.benchmarks.latents import TINY
from ditkit.benchmarks.ours import step_of
from ditkit.errors import InputError
from ditkit.timing import seconds

STATUS = Path("/proc/self/status")
PEAK = Path("/proc/self/clear_refs")
"""Where 5 is written, the highest resident set so far is forgotten (proc(5))."""

Built = Callable[[], tuple[Any, Callable[[], object]]]
"""Makes a network and what is to be timed of it; for another process one that can be pickled."""
SMALL: Built = partial(step_of, TINY, 2, "auto")


class Measured(NamedTuple):
    """A training step on one thread, or as many as were asked for."""

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


def measure_step(build: Built, rounds: int, first: Built = SMALL, threads: int = 1) -> Measured:
    """`rounds` training steps, after a first one, of what `build` makes, in a new process; `first` makes something small of the
    same kind, whose step loads the libraries' code."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure_here, build, rounds, first, threads).result()


def _measure_here(build: Built, rounds: int, first: Built, threads: int) -> Measured:
    torch.set_num_threads(threads)
    first()[1]()  # the libraries' code is no cost of the network
    gc.collect()
    before = _memory("VmRSS")
    _, step = build()
    step()
    _forget_peak()  # of the compiler, in the first step; later ones take as much as the first or more
    spent = [seconds(step, time.process_time) for _ in range(rounds)]
    return Measured(spent, _memory("VmHWM") - before)


def _forget_peak() -> None:
    with suppress(OSError):  # a container may forbid it
        PEAK.write_text("5", encoding="utf-8")


def _memory(key: str) -> int:
    """Bytes resident now (VmRSS) or at most so far (VmHWM); unlike getrusage's, of this process alone."""
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])
