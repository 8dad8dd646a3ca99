"""A form of a network in a process of its own, which makes one call whenever it is asked to.

So each has the memory allocator that it has with its users (ditkit's commands keep what is freed, others leave it to the
system), a compiler of its own, and its own peak of memory.
"""

import gc
import logging
import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from ditkit.backbones import DiTConfig
from ditkit.benchmarks.latents import CPU, TINY
from ditkit.benchmarks.memory import forget_peak, memory_known, peak, resident
from ditkit.benchmarks.peers import Form
from ditkit.device import no_compiler
from ditkit.errors import InputError
from ditkit.heap import keep_freed_memory
from ditkit.timing import shares

GRACE = 10
"""Seconds in which a process ends that nobody asks any more."""


class Work(NamedTuple):
    """What a process is for."""

    form: Form
    backbone: DiTConfig
    batch: int
    threads: int


class Running:
    """A process that trains and evaluates one form; it ends with this one, or by `close`."""

    def __init__(self, work: Work):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self._process.start()
        theirs.close()
        self.name = work.form.name

    def parameters(self) -> int:
        """How many are trained."""
        return self._answer("parameters")

    def step(self) -> None:
        """A training step."""
        self._answer("step")

    def evaluate(self) -> None:
        """A guided evaluation, of a network by itself, which the first call makes."""
        self._answer("evaluate")

    def shares(self) -> dict[str, float]:
        """Where the time of a step goes, as of `timing.shares`."""
        return self._answer("shares")

    def memory(self) -> int | None:
        """Bytes: the peak of a training step over what was resident before the network was built, known after two of them and
        before an evaluation; None where the system does not tell."""
        return self._answer("memory")

    def close(self) -> None:
        """End it, by itself where it is not in a long call."""
        self._pipe.close()
        self._process.join(GRACE)
        self._process.kill()
        self._process.join()

    def _answer(self, name: str) -> Any:
        """InputError, in one line, where it fails."""
        try:
            self._pipe.send(name)
            failure, found = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            raise InputError(f"{self.name}: its process ended with status {self._process.exitcode}") from None
        if failure:
            raise InputError(f"{self.name}: {failure}")
        return found


def _serve(pipe: Connection, work: Work) -> None:
    logging.disable(logging.WARNING)  # of what diffusers imports, if it is installed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks ends this one
    torch.set_num_threads(work.threads)
    try:
        answers = _answers(work)
        failure = None
    except Exception as error:
        answers, failure = {}, _line(error)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # nobody asks any more
        while True:
            name, found = pipe.recv(), None
            if not failure:
                try:
                    found = answers[name]()
                except Exception as error:
                    failure = _line(error)
            pipe.send((failure, found))


def _line(error: Exception) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"[:300]


def _answers(work: Work) -> dict[str, Callable[[], Any]]:
    """What is done, by what is asked for."""
    form = work.form
    if form.ours:
        keep_freed_memory()
    _, first = form._replace(compiled=False).built_step(TINY, 2)
    first()  # loads the libraries' code, which is no cost of the network
    if form.compiled:
        no_compiler(CPU)  # starts the compiler
    gc.collect()
    known = memory_known()
    before = resident() if known else 0
    net, step = form.built_step(work.backbone, work.batch)
    made: list[Callable[[], object]] = []
    peaks: list[int] = []

    def watched() -> None:
        """The second step's peak counts: the first compiles, and makes what the optimiser keeps."""
        step()
        if known and len(peaks) < 2:
            peaks.append(peak() - before)
            forget_peak()

    def evaluate() -> None:
        if not made:
            made.append(form.built_evaluation(work.backbone, work.batch))
        made[0]()

    return {
        "parameters": lambda: sum(p.numel() for p in net.parameters() if p.requires_grad),
        "step": watched,
        "evaluate": evaluate,
        "shares": partial(shares, step),
        "memory": lambda: peaks[-1] if peaks else None,
    }
