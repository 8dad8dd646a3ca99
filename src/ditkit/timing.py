"""Timing things in turn: by the clock, and by kind of operator."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

import torch

# Where a step's time goes: the first group one of whose words is in the operator's name gets it.
GROUPS: dict[str, tuple[str, ...]] = {
    "optimiser": ("adam",),
    "moving average": ("lerp",),
    "gradient norm": ("foreach_norm", "foreach_mul", "linalg_vector_norm"),
    "attention": ("bmm", "softmax", "attention"),
    "convolutions": ("convolution", "conv2d", "depthwise", "padded"),
    "linear layers": ("addmm", "::mm", "linear"),
    "norms, pointwise": (
        "norm", "gelu", "silu", "tanh", "mul", "add", "sub", "div", "sum", "neg", "exp", "pow", "compiled", "graph_",
    ),
    "copies, casts": ("copy", "clone", "contiguous", "cat", "fill", "zero"),
}  # fmt: skip


@dataclass
class Contender:
    """One thing to time."""

    task: str
    name: str
    run: Callable[[], object]
    first: float = 0.0  # seconds of the first call, compilation included
    times: list[float] = field(default_factory=list)  # seconds, one per round

    @property
    def median(self) -> float:
        return median(self.times)


def measure(contenders: list[Contender], rounds: int, tick: Callable[[], object]) -> None:
    """Two calls of each to warm up, then `rounds` times each in turn; `tick` after every call."""
    for contender in contenders:
        contender.first = seconds(contender.run)
        tick()
        contender.run()
        tick()
    for _ in range(rounds):
        for contender in contenders:
            contender.times.append(seconds(contender.run))
            tick()


def shares(run: Callable[[], object]) -> dict[str, float]:
    """Shares of one call's time by kind of operator, from torch's profiler; they add up to 1."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silent_stderr(), torch.profiler.profile(activities=activities) as profiler:
        run()
    spent = dict.fromkeys((*GROUPS, "other"), 0.0)
    for event in profiler.key_averages():
        name = event.key.lower()
        group = next((group for group, words in GROUPS.items() if any(w in name for w in words)), "other")
        spent[group] += event.self_cpu_time_total
    return {group: value / sum(spent.values()) for group, value in spent.items()}


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler's C++ side announces itself on file descriptor 2, whatever its log level."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one call, by that clock."""
    start = clock()
    run()
    return clock() - start
