"""`ditkit bench --backbones A B ...`: do multiply-adds become time? Backbones against each other."""

from collections.abc import Iterator
from statistics import median
from typing import Annotated

from pydantic import Field

from ditkit.backbones import BACKBONES, compile_blocks
from ditkit.benchmarks.ours import evaluation_of, step_of
from ditkit.cli.measured import MeasuredCommand, machine, threads, write
from ditkit.cli.parsing import parse
from ditkit.costs import Published, cost, published
from ditkit.device import Precision
from ditkit.errors import InputError
from ditkit.scoring import software
from ditkit.timing import Contender, shares

EVALUATION, STEP = "evaluation", "training step"


class BackboneBenchCommand(MeasuredCommand):
    """Time an evaluation and a training step of several backbones in turn, on 32 x 32 x 4 latents, and hold the
    ratios of their times against those of their multiply-adds.

    Multiply-adds are counted of what runs: an evaluation's of the fused network, a step's of the form that is
    trained. Leave the machine alone meanwhile.
    """

    backbones: tuple[str, ...]
    """Names as in `ditkit list backbones`; the last is what the others are compared with."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Images at once."""
    train: bool = True
    """Also training steps; they take five times the memory of the weights."""
    precision: Precision = "auto"
    """auto: bf16 autocast over float32 weights where this machine has fast bf16."""


def run(argv: list[str]) -> None:
    command = parse(BackboneBenchCommand, argv, "bench")
    known = [name for name in BACKBONES if published(name) == Published()]
    for name in command.backbones:
        if name not in known:
            raise InputError(
                f"--backbones: {name!r} is no network of 32 x 32 x 4 latents and classes; choose one of: "
                f"{', '.join(known)}"
            )
    if len(set(command.backbones)) < max(2, len(command.backbones)):
        raise InputError("--backbones: give at least two different names")
    command.check()
    with threads(command.threads):
        rows: list[dict] = []
        where: dict[str, dict[str, float]] = {}
        for task in (EVALUATION, STEP) if command.train else (EVALUATION,):
            contenders = list(_contenders(command, task))  # of one task at a time, for memory
            command.measure(contenders, task)
            rows += [_row(contender, contenders[-1]) for contender in contenders]
            where |= {f"{task}, {contender.name}": shares(contender.run) for contender in contenders}
            del contenders
        record = {
            "machine": machine(),
            "software": software(),
            "batch": command.batch,
            "rounds": command.rounds,
            "precision": command.precision,
            "compiled": command.compile,
            "rows": rows,
            "shares": where,
        }
    print("\n".join(_report(record)))
    write(record, command.out)


def _contenders(command: BackboneBenchCommand, task: str) -> Iterator[Contender]:
    build = evaluation_of if task == EVALUATION else step_of
    for name in command.backbones:
        net, call = build(BACKBONES[name], command.batch, command.precision)
        if command.compile:
            compile_blocks(net)
        yield Contender(task, name, call)


def _row(contender: Contender, last: Contender) -> dict:
    """Milliseconds an image, and how much longer than the last backbone, measured and by multiply-adds."""
    macs, against = (_macs(c) for c in (contender, last))
    ratio = median(mine / theirs for mine, theirs in zip(contender.times, last.times, strict=True))
    return {
        "task": contender.task,
        "name": contender.name,
        "macs": macs,
        "ms": 1000 * contender.median,
        "time_ratio": ratio,
        "macs_ratio": macs / against,
        "excess": ratio / (macs / against),
        "first_call_s": contender.first,
        "times_ms": [1000 * seconds for seconds in contender.times],
    }


def _macs(contender: Contender) -> int:
    """Of one image: a step is taken as three evaluations."""
    found = cost(contender.name, 256, fused=contender.task == EVALUATION)
    return found.macs * (3 if contender.task == STEP else 1)


def _report(record: dict) -> Iterator[str]:
    batch = record["batch"]
    yield (
        f"{'':32s}{'GMACs/image':>12s}{'ms/image':>10s}{'GMACs/s':>9s}{'time':>8s}{'MACs':>8s}{'time/MACs':>11s}"
    )
    for row in record["rows"]:
        yield (
            f"{row['task'] + ', ' + row['name']:32s}{row['macs'] / 1e9:12.2f}{row['ms'] / batch:10.1f}"
            f"{row['macs'] * batch / row['ms'] / 1e6:9.0f}{row['time_ratio']:8.3f}{row['macs_ratio']:8.3f}"
            f"{row['excess']:11.2f}"
        )
    yield f"time, MACs: relative to {record['rows'][-1]['name']}, medians of the rounds' ratios\n"
    names = list(record["shares"])
    yield f"{'where the time goes':32s}" + "".join(f"{name:>28s}" for name in names)
    for group in record["shares"][names[0]]:
        yield f"{group:32s}" + "".join(f"{record['shares'][name][group]:28.1%}" for name in names)
    there, versions = record["machine"], record["software"]
    yield (
        f"\nbatch {batch}, {record['precision']}, {'compiled' if record['compiled'] else 'eager'}; {there['cpu']}, "
        f"{there['threads']} threads, torch {versions['torch']}, ditkit {versions.get('commit', versions['ditkit'])}"
    )
