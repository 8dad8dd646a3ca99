"""`ditkit bench`: how fast ditkit's training step and guided evaluation are here, next to diffusers'."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from statistics import median
from typing import Annotated

from pydantic import Field

from ditkit.backbones.sections.dit import DIT_SIZES
from ditkit.benchmark import CPU, STEP, TINY, Suite, baseline_of, build_suite
from ditkit.cli import (
    bench_backbones,
    bench_cost,
    bench_data,
    bench_gpu,
    bench_levels,
    bench_parallel,
    bench_sizes,
    bench_statistics,
)
from ditkit.cli.measured import MeasuredCommand, machine, threads, write
from ditkit.cli.parsing import parse
from ditkit.device import Precision, has_fast_bf16
from ditkit.progress import progress_bar
from ditkit.scoring import software
from ditkit.timing import Contender, measure, shares

OTHERS = {  # a flag of their own, taken away
    "--cost": bench_cost,
    "--statistics": bench_statistics,
    "--gpu": bench_gpu,
}


class BenchCommand(MeasuredCommand):
    """Time a training step and a guided evaluation of DiT-S/2 against diffusers, in turn, on this CPU.

    The step is forward, DiT's loss, backward, AdamW and moving average on 32 x 32 x 4 latents, as
    `ditkit train` does it; diffusers' network of the same size runs in a plain PyTorch loop. The
    evaluation is half a batch of images, guided. Leave the machine alone meanwhile.

    `ditkit bench --cost` holds the costs that `ditkit info` predicts against measured ones instead;
    `ditkit bench --statistics` times the mathematics of scores; `ditkit bench --backbones A B` times backbones
    against each other, `ditkit bench --levels RECIPE` the resolutions of a nested one, `ditkit bench --sizes RECIPE`
    buckets, packed rows and padding, `ditkit bench --data DIR` a folder of images: decoding, preparing, reading;
    `ditkit bench --parallel RECIPE` what sharing a training among processes costs; `ditkit bench --gpu` measures a GPU.
    """

    batch: Annotated[int, Field(ge=2, multiple_of=2)] = 16
    """Images of a training step; rows of a guided evaluation."""
    compile: bool = True
    """Also with blocks compiled, on both sides; the first call then takes from ten seconds to minutes."""
    precision: Precision = "auto"
    """auto: bf16 autocast over float32 weights where this machine has fast bf16; the same on both sides."""
    small: bool = False
    """A tiny network, to try the command in seconds; its ratios say nothing."""


def run(argv: list[str]) -> None:
    for flag, other in (
        ("--backbones", bench_backbones),
        ("--levels", bench_levels),
        ("--sizes", bench_sizes),
        ("--data", bench_data),
        ("--parallel", bench_parallel),
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
    backbone = TINY if command.small else DIT_SIZES["DiT-S/2"]
    with threads(command.threads), _cold_compiler():
        suite = build_suite(backbone, command.batch, command.precision, command.compile)
        calls = (command.rounds + 2) * len(suite.contenders)
        with progress_bar(calls, "bench", "call") as bar:
            measure(suite.contenders, command.rounds, bar.update)
        parts = {c.name: shares(c.run) for c in suite.contenders if c.task == STEP and "ditkit" in c.name}
        record = _record(command, suite, parts)
    print("\n".join(_report(record)))
    write(record, command.out)


def _record(command: BenchCommand, suite: Suite, parts: dict[str, dict[str, float]]) -> dict:
    bf16 = command.precision == "bf16" or (command.precision == "auto" and has_fast_bf16(CPU))
    return {
        "machine": machine(),
        "software": {**software(), "diffusers": version("diffusers")},
        "network": "tiny" if command.small else "DiT-S/2",
        "batch": command.batch,
        "rounds": command.rounds,
        "precision": "bf16 autocast" if bf16 else "fp32",
        "parameters": suite.parameters,
        "rows": [_row(contender, baseline_of(contender, suite.contenders)) for contender in suite.contenders],
        "step_shares": parts,
    }


def _row(contender: Contender, baseline: Contender) -> dict:
    """Times in milliseconds; ratios above 1 are faster than diffusers, eager."""
    ratios = [theirs / ours for theirs, ours in zip(baseline.times, contender.times, strict=True)]
    return {
        "task": contender.task,
        "name": contender.name,
        "ms": 1000 * contender.median,
        "ratio": baseline.median / contender.median,
        "ratio_by_round": median(ratios),
        "first_call_s": contender.first,
        "times_ms": [1000 * seconds for seconds in contender.times],
    }


def _report(record: dict) -> Iterator[str]:
    yield f"{'':40s}{'ms':>9s}{'speed':>8s}{'by round':>10s}{'first call, s':>15s}"
    for row in record["rows"]:
        yield (
            f"{row['task'] + ', ' + row['name']:40s}{row['ms']:9.1f}{row['ratio']:8.2f}"
            f"{row['ratio_by_round']:10.2f}{row['first_call_s']:15.1f}"
        )
    yield "speed: diffusers, eager, is 1; by round: median of the rounds' ratios"
    yield "first call: compiles from an empty cache; the first of them also starts the compiler\n"

    steps = {row["name"]: row["ms"] for row in record["rows"] if row["task"] == STEP}
    names = list(record["step_shares"])
    yield f"{'where a step goes':40s}" + "".join(f"{name + ', ms':>24s}" for name in names)
    for group in record["step_shares"][names[0]]:
        found = ((share := record["step_shares"][name][group], share * steps[name]) for name in names)
        yield f"{group:40s}" + "".join(f"{ms:17.1f}{share:7.1%}" for share, ms in found)
    counts = ", ".join(f"{name} {count:,}" for name, count in record["parameters"].items())
    machine, versions = record["machine"], record["software"]
    yield f"\n{record['network']}, batch {record['batch']}, {record['precision']}; parameters: {counts}"
    yield "(every block of diffusers' network has its own embeddings of time and class)"
    yield (
        f"{machine['cpu']}, {machine['threads']} threads, torch {versions['torch']}, "
        f"diffusers {versions['diffusers']}, ditkit {versions.get('commit', versions['ditkit'])}"
    )


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
