"""`ditkit bench`: how fast ditkit's training step and guided evaluation are here, next to others'."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from typing import Annotated

from pydantic import Field

from ditkit.backbones.sections.dit import DIT_SIZES
from ditkit.benchmarks.latents import CPU, TINY
from ditkit.benchmarks.peers import PEERS
from ditkit.benchmarks.suite import (
    STEP,
    Entry,
    Suite,
    forecast_of,
    running_suite,
    speed_against,
)
from ditkit.cli import (
    bench_backbones,
    bench_cost,
    bench_data,
    bench_gpu,
    bench_levels,
    bench_parallel,
    bench_sizes,
    bench_statistics,
    bench_study,
)
from ditkit.cli.bench_report import report
from ditkit.cli.measured import MeasuredCommand, machine, threads, write
from ditkit.cli.parsing import parse
from ditkit.config import SomeOf
from ditkit.device import Precision, uses_bf16
from ditkit.scoring import software
from ditkit.timing import Contender

OTHERS = {  # a flag of their own, taken away
    "--cost": bench_cost,
    "--statistics": bench_statistics,
    "--gpu": bench_gpu,
}


class BenchCommand(MeasuredCommand):
    """Time a training step and a guided evaluation of DiT-S/2 against others, in turn, on this CPU.

    The step is forward, DiT's loss, backward, AdamW and moving average on 32 x 32 x 4 latents, as
    `ditkit train` does it. The evaluation is half a batch of images, guided. The others are `paper`, a DiT trained and
    sampled as the paper's authors do it, eager, in float32 and in bf16, and diffusers' network in a plain PyTorch loop.

    GFLOP/s are those of the network's products, of which a step has three times as many as a forward pass; beside them is
    the share of what products alone, of the blocks' shapes, reach in the same rounds (GEMM). Each row has a process of its own,
    whose peak in a step is its memory. Leave the machine alone meanwhile.

    `ditkit bench --cost` holds the costs that `ditkit info` predicts against measured ones instead;
    `ditkit bench --statistics` times the mathematics of scores; `ditkit bench --backbones A B` times backbones
    against each other, `ditkit bench --levels RECIPE` the resolutions of a nested one, `ditkit bench --sizes RECIPE`
    buckets, packed rows and padding, `ditkit bench --data DIR` a folder of images: decoding, preparing, reading;
    `ditkit bench --parallel RECIPE` what sharing a training among processes costs; `ditkit bench --study NAME` a step of
    each of a study's recipes; `ditkit bench --gpu` measures a GPU.
    """

    batch: Annotated[int, Field(ge=2, multiple_of=2)] = 16
    """Images of a training step; rows of a guided evaluation."""
    peers: Annotated[tuple[str, ...], SomeOf(PEERS)] = tuple(PEERS)
    """What ditkit is compared with."""
    compile: bool = True
    """Also with blocks compiled, ditkit's and diffusers'; the first call then takes from ten seconds to minutes."""
    precision: Precision = "auto"
    """auto: bf16 autocast over float32 weights where this machine has fast bf16; the same for all, but for the paper's loop in
    float32, which is run besides."""
    small: bool = False
    """A tiny network, to try the command in seconds; its ratios say nothing."""


def run(argv: list[str]) -> None:
    for flag, other in (
        ("--backbones", bench_backbones),
        ("--levels", bench_levels),
        ("--sizes", bench_sizes),
        ("--data", bench_data),
        ("--parallel", bench_parallel),
        ("--study", bench_study),
    ):
        if flag in argv:
            other.run(argv)
            return
    for flag, other in OTHERS.items():
        if flag in argv:
            other.run([word for word in argv if word != flag])
            return
    command = parse(BenchCommand, argv, "bench")
    command.check()
    with threads(command.threads), _cold_compiler():
        record = _measured(command)
    print("\n".join(report(record)))
    write(record, command.out)


def _measured(command: BenchCommand) -> dict:
    """The record of all that is measured."""
    backbone = TINY if command.small else DIT_SIZES["DiT-S/2"]
    precision: Precision = "bf16" if uses_bf16(CPU, command.precision) else "fp32"
    with running_suite(backbone, command.batch, precision, command.compile, command.peers) as suite:
        command.measure(suite.contenders, "bench")
        steps = [entry for entry in suite.entries if entry.contender.task == STEP]
        parts = {entry.form.name: entry.process.shares() for entry in steps if entry.form.ours}
        memory = {entry.form.name: entry.process.memory() for entry in steps}
    there = {"diffusers": version("diffusers")} if "diffusers" in suite.parameters else {}
    return {
        "machine": machine(),
        "software": {**software(), **there},
        "network": "tiny" if command.small else "DiT-S/2",
        "batch": command.batch,
        "rounds": command.rounds,
        "precision": "bf16 autocast" if precision == "bf16" else "fp32",
        "parameters": suite.parameters,
        "macs": suite.macs,
        "gemm": {each: _gemm(suite, each) for each in suite.products},
        "memory": {
            entry.form.name: {
                "measured": memory[entry.form.name],
                "predicted": forecast_of(entry.form, backbone, command.batch),
            }
            for entry in steps
            if memory[entry.form.name]
        },
        "rows": [_row(entry, suite) for entry in suite.entries],
        "step_shares": parts,
    }


def _gemm(suite: Suite, precision: Precision) -> dict:
    contender = suite.products[precision]
    return {
        "gflops": suite.product_rate(precision) / 1e9,
        "ms": 1000 * contender.median,
        "times_ms": _ms(contender),
    }


def _row(entry: Entry, suite: Suite) -> dict:
    """Times in milliseconds; ratios above 1 are faster than the baseline."""
    contender, form = entry.contender, entry.form
    speed, alone = suite.flops(contender), suite.product_rate(form.precision)
    return {
        "task": contender.task,
        "name": contender.name,
        "precision": form.precision,
        "ms": 1000 * contender.median,
        "against": {
            name: speed_against(contender, of[contender.task]) for name, of in suite.baselines.items()
        },
        "gflops": speed / 1e9,
        "share_of_gemm": speed / alone,
        "first_call_s": contender.first,
        "times_ms": _ms(contender),
    }


def _ms(contender: Contender) -> list[float]:
    return [1000 * seconds for seconds in contender.times]


@contextlib.contextmanager
def _cold_compiler() -> Iterator[None]:
    """An empty cache for torch.compile, so that what compiling costs is seen every time."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(variable)
    with tempfile.TemporaryDirectory(prefix="ditkit-bench-") as folder:
        os.environ[variable] = folder
        try:
            yield
        finally:
            os.environ.pop(variable) if before is None else os.environ.update({variable: before})
