"""`ditkit bench --gpu`: what this GPU reaches, in at most ten minutes; `make gpu-check` runs its tests first."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple
from xml.etree import ElementTree

import torch
from pydantic import Field

from ditkit.benchmarks.gpu import EVALUATIONS, NETWORKS, Work, described, measured, products
from ditkit.benchmarks.several_gpus import several
from ditkit.cli.measured import check_record, machine, write
from ditkit.cli.parsing import parse
from ditkit.config import Section
from ditkit.costs.gpus import GPUS
from ditkit.errors import InputError
from ditkit.own_process import in_own_process
from ditkit.records import write_whole
from ditkit.scoring import software

GB, TERA = 1e9, 1e12
TESTS = ("test_gpu.py", "test_goldens.py")
LONGEST_TESTS = 0.4
"""The share of the time that tests may take."""
SMALL = {"name": "none: a tiny network on the CPU", "plan": None, "count": 0}
NO_GPU = "no CUDA GPU is there"


class GpuBenchCommand(Section):
    """Measure this GPU: its products, training steps and sampling of DiT-S/2, B/2 and XL/2, the memory that they take beside
    what `ditkit plan` predicts, and with several GPUs training steps by DDP and FSDP.

    It needs nothing but ditkit's own dependencies and no data, starts nothing that it may not be able to end in time,
    and says what it left out. Prints a table in Markdown, which --out also writes beside the record.
    """

    minutes: Annotated[float, Field(gt=0, le=60)] = 10.0
    """At most."""
    tests: Path | None = None
    """First run the tests that are marked `gpu`, of this folder, with pytest."""
    out: Path | None = None
    """Write the record to this JSON file, and the table to a .md beside it."""
    replace: bool = False
    """Write over files that are there."""
    small: bool = False
    """A tiny network on the CPU, to try the command in seconds; its numbers say nothing."""


class Part(NamedTuple):
    """Something to run in a process of its own."""

    name: str
    section: str
    """Of the record, under which the result stands."""
    least: float
    """Seconds without which it is not begun."""
    run: Callable[[float], Any]
    """Called with the seconds that are left. InputError where it fails."""


def run(argv: list[str]) -> None:
    command = parse(GpuBenchCommand, argv, "bench --gpu")
    if not command.small and not torch.cuda.is_available():
        raise InputError(f"bench --gpu: {NO_GPU}; `small` True tries the command on the CPU")
    for suffix in (".json", ".md"):
        check_record(command.out and command.out.with_suffix(suffix), command.replace)
    # In a process of its own, too: one that has asked a GPU for something keeps memory there.
    gpu = SMALL if command.small else in_own_process(60, described)
    record = check(
        list(parts(command)), 60 * command.minutes, say=partial(print, file=sys.stderr, flush=True)
    )
    record = {"gpu": gpu, "machine": machine(), "software": software(), **record}
    text = "\n".join(table(record))
    print(text)
    write(record, command.out)
    if command.out is not None:
        write_whole(command.out.with_suffix(".md"), f"{text}\n".encode())
    if failed := [name for found in record.get("tests", []) for name in found["failed"]]:
        raise InputError(
            f"{len(failed)} of the tests failed, {failed[0]} the first; `pytest -m gpu` says how"
        )


def parts(command: GpuBenchCommand) -> Iterator[Part]:
    """What there is to do, the most telling first."""
    small = command.small
    device, unit, seconds = ("cpu", 0.0, 0.05) if small else ("cuda", 1.0, 3.0)
    if command.tests is not None:
        share = partial(_tests, command.tests, device, LONGEST_TESTS * 60 * command.minutes)
        yield Part("tests", "tests", 60 * unit, share)
    side = 128 if small else 8192
    yield Part(
        "products",
        "products",
        20 * unit,
        lambda left: in_own_process(left, products, device, side, 2 * seconds),
    )
    names = ["tiny"] if small else [name for name in reversed(NETWORKS) if name != "tiny"]
    for compiled, least in ((False, 40), (True, 90)):
        for name in names if not (small and compiled) else ():
            work = Work(name, device, compiled, seconds)
            form = "compiled" if compiled else "eager"
            yield Part(f"{name}, {form}", "networks", least * unit, partial(_measured, work))
    count = 2 if small else torch.cuda.device_count()
    for kind in ("ddp", "fsdp"):
        work = Work("tiny" if small else "DiT-B/2", device, False, seconds)
        yield Part(f"{kind} on {count} GPUs", "several", 60 * unit, partial(_several, work, kind, count))


def _measured(work: Work, left: float) -> dict:
    return in_own_process(left, measured, work)


def _several(work: Work, kind: Any, count: int, left: float) -> dict:
    if count < 2:
        raise InputError("there is one GPU")
    return several(work, kind, count, left)


def check(
    todo: list[Part],
    seconds: float,
    say: Callable[[str], object],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """The results of the parts by their sections, and those that were left out, with the reason. One is begun only where as
    much time is left as it needs at least, and gets no more than what is left."""
    start = clock()
    found: dict[str, list] = {}
    skipped: list[dict[str, str]] = []
    for part in todo:
        left = seconds - (clock() - start)
        why = f"{left:.0f} s were left, it needs {part.least:.0f}" if left < max(part.least, 1e-9) else None
        if why is None:
            say(f"{part.name} ...")
            try:
                found.setdefault(part.section, []).append(part.run(left))
            except InputError as error:
                why = str(error)
        if why is not None:
            say(f"skipped {part.name}: {why}")
            skipped.append({"part": part.name, "why": why})
    return {**found, "skipped": skipped, "seconds": round(clock() - start, 1)}


def _tests(folder: Path, device: str, most: float, left: float) -> dict[str, Any]:
    """How many of the tests marked `gpu` passed, which failed, and why some were skipped."""
    files = [str(folder / name) for name in TESTS]
    with TemporaryDirectory(prefix="ditkit-gpu-") as scratch:
        report = Path(scratch) / "tests.xml"
        flags = ["-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junit-xml={report}"]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *flags, *files],
                env=os.environ | {"DITKIT_TEST_DEVICE": device},
                capture_output=True, text=True, timeout=min(most, left),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise InputError(f"they did not end within {min(most, left):.0f} s") from None
        if done.returncode not in (0, 1) or not report.exists():
            lines = (done.stderr.strip() or done.stdout).strip().splitlines()
            raise InputError(f"pytest: {lines[-1][:200] if lines else 'it says nothing'}")
        return counted(report)


def counted(report: Path) -> dict[str, Any]:
    """Of pytest's report in JUnit's form."""
    passed, failed = 0, []
    skipped: dict[str, int] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(str(case.get("name")))
        elif (why := case.find("skipped")) is not None:
            reason = str(why.get("message"))
            skipped[reason] = skipped.get(reason, 0) + 1
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "skipped": skipped}


def table(record: dict[str, Any]) -> Iterator[str]:
    """The record in Markdown."""
    gpu, versions, there = record["gpu"], record["software"], record["machine"]
    yield (
        f"{gpu['name']}{', ' + str(gpu['count']) + ' of them' if gpu['count'] > 1 else ''}; {there['cpu']}; torch "
        f"{versions['torch']}, ditkit {versions.get('commit', versions['ditkit'])}; {record['seconds']:.0f} s"
    )
    peak = yield from _products(record)
    for found in record.get("tests", []):
        skips = "".join(f"; {count} skipped: {why}" for why, count in found["skipped"].items())
        yield f"Tests: {found['passed']} passed, {len(found['failed'])} failed{skips}."
        yield from (f"- failed: {name}" for name in found["failed"])
    yield from _networks(record.get("networks", []), peak)
    yield from _of_several(record.get("several", []), peak)
    yield ""
    yield "Left out:" if record["skipped"] else "Nothing was left out."
    yield from (f"- {skip['part']}: {skip['why']}" for skip in record["skipped"])


def _products(record: dict[str, Any]) -> Any:
    """A line on products of matrices; returns what bf16 reached, operations per second."""
    for found in record.get("products", []):
        shown = ", ".join(f"{name} {value / TERA:,.4g}" for name, value in found.items())
        known = GPUS.get(record["gpu"]["plan"])
        states = f" (its maker states {known.bf16 / TERA:,.4g} in bf16)" if known else ""
        yield f"Products of matrices (GEMM), TFLOP/s: {shown}{states}."
        return found["bf16"]
    return None


def _networks(rows: list[dict[str, Any]], peak: float | None) -> Iterator[str]:
    if not rows:
        return
    yield ""
    yield (
        "| network, bf16 | images | step, ms | images/s | TFLOP/s | of GEMM | "
        "sampled images/s | TFLOP/s | of GEMM | memory, GB | planned | error |"
    )
    yield "|---|" + "---:|" * 11
    for row in rows:
        memory = row["memory"]
        measured_, predicted = memory["measured"], memory["predicted"]
        error = "" if measured_ is None else f"{predicted / measured_ - 1:+.1%}"
        yield (
            f"| {row['network']}, {'compiled' if row['compiled'] else 'eager'} | {row['images']} | {row['step_ms']:,.1f} | "
            f"{row['images_per_second']:,.1f} | {_speed(row['step_flops'], peak)} | {row['sampled_per_second']:,.2f} | "
            f"{_speed(row['evaluation_flops'], peak)} | {'' if measured_ is None else f'{measured_ / GB:,.2f}'} | "
            f"{predicted / GB:,.2f} | {error} |"
        )
    yield ""
    yield (
        f"A step is three forward passes of multiply-adds, two operations each; an image is sampled with {EVALUATIONS} guided "
        "evaluations; memory is that of tensors at the worst moment of a step, planned for eager blocks."
    )


def _of_several(rows: list[dict[str, Any]], peak: float | None) -> Iterator[str]:
    if not rows:
        return
    yield ""
    yield "| several GPUs, bf16 | GPUs | images each | step, ms | images/s | TFLOP/s a GPU | of GEMM |"
    yield "|---|" + "---:|" * 6
    for row in rows:
        yield (
            f"| {row['network']}, {row['kind']} | {row['gpus']} | {row['images']} | {row['step_ms']:,.1f} | "
            f"{row['images_per_second']:,.1f} | {_speed(row['step_flops'], peak)} |"
        )


def _speed(flops: float, peak: float | None) -> str:
    """Two cells."""
    return f"{flops / TERA:,.4g} | {'' if peak is None else f'{flops / peak:.0%}'}"
