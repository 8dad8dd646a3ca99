"""`ditkit bench --cost`: predicted memory and step times beside measured ones."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

from pydantic import Field

from ditkit.backbones import BACKBONES, BackboneConfig, DiTConfig
from ditkit.benchmarks.latents import CHANNELS, CLASSES, CPU, SIDE, TINY
from ditkit.benchmarks.memory import check_memory_known, measure_step
from ditkit.benchmarks.ours import step_of
from ditkit.cli.measured import check_record, machine, threads, write
from ditkit.cli.parsing import parse
from ditkit.config import Section
from ditkit.costs.count import count_cost
from ditkit.costs.speed import Rates, calibrate
from ditkit.device import Precision, has_fast_bf16
from ditkit.progress import progress_bar
from ditkit.scoring import software

NETWORKS: dict[str, BackboneConfig] = {
    "DiT, width 128, depth 4, patch 4": DiTConfig(width=128, depth=4, heads=2, patch=4),
    "DiT, width 192, depth 6, patch 4": DiTConfig(width=192, depth=6, heads=3, patch=4),
    "DiT-S/2": BACKBONES["DiT-S/2"],
    "UNet": BACKBONES["UNet"],
}
MB = 1e6


class CostCommand(Section):
    """Hold the memory and the step time that `ditkit info` predicts against what training takes.

    Three sizes of DiT and the U-Net on 32 x 32 x 4 latents with DiT's loss, each in a process of its own,
    on one thread, eager: the peak of the resident set above its size before the network was built, and
    the median step. Times are the processor's: other work on the machine changes them little.
    """

    rounds: Annotated[int, Field(ge=1)] = 10
    """Steps measured, after a first one."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Images of a step."""
    out: Path | None = None
    """Write the record, every time measured included, to this JSON file."""
    replace: bool = False
    """Write over a file that is there."""
    small: bool = False
    """A tiny network, to try the command in seconds; its errors say nothing."""


def run(argv: list[str]) -> None:
    command = parse(CostCommand, argv, "bench --cost")
    check_record(command.out, command.replace)
    check_memory_known()
    networks = {"tiny": TINY} if command.small else NETWORKS
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if has_fast_bf16(CPU) else ("fp32",)
    rows = []
    with threads(1), progress_bar(len(networks) * len(precisions), "bench", "network") as bar:
        for precision in precisions:
            rates = calibrate(precision, time.process_time)
            for name, config in networks.items():
                rows.append(
                    {"network": name, "precision": precision, **_row(config, precision, rates, command)}
                )
                bar.update()
        record = {"machine": machine(), "software": software(), "batch": command.batch, "rows": rows}
    print("\n".join(_report(record)))
    write(record, command.out)


def _row(config: BackboneConfig, precision: Precision, rates: Rates, command: CostCommand) -> dict:
    """Bytes and milliseconds, predicted and measured."""
    net = config.build(channels=CHANNELS, classes=CLASSES, out_channels=2 * CHANNELS)
    cost = count_cost(net, (CHANNELS, SIDE, SIDE), labelled=True)
    memory = cost.memory(command.batch, precision)
    predicted = rates.seconds(cost.work(command.batch, precision))
    measured = measure_step(partial(step_of, config, command.batch, precision), command.rounds)
    step = median(measured.seconds)
    return {
        "parameters": cost.params,
        "memory": {
            "predicted": memory.resident,
            "measured": measured.memory,
            "error": memory.resident / measured.memory - 1,
            "predicted_allocated": memory.peak,
            "activations": memory.activations,
        },
        "step_ms": {
            "predicted": 1000 * predicted,
            "measured": 1000 * step,
            "error": predicted / step - 1,
            "times": [1000 * seconds for seconds in measured.seconds],
        },
    }


def _report(record: dict) -> Iterator[str]:
    yield f"{'':34s}{'':6s}{'parameters':>12s}{'memory, MB':>20s}{'error':>7s}{'step, ms':>18s}{'error':>7s}"
    for row in record["rows"]:
        memory, step = row["memory"], row["step_ms"]
        of_memory = f"{memory['predicted'] / MB:,.0f} ({memory['measured'] / MB:,.0f})"
        of_step = f"{step['predicted']:,.0f} ({step['measured']:,.0f})"
        yield (
            f"{row['network']:34s}{row['precision']:6s}{row['parameters']:12,d}{of_memory:>20s}"
            f"{memory['error']:+7.0%}{of_step:>18s}{step['error']:+7.0%}"
        )
    yield "predicted (measured); memory is resident, of which the heap wastes a part, see `ditkit info`"
    machine, versions = record["machine"], record["software"]
    yield (
        f"batch {record['batch']}, one thread, {machine['cpu']}, torch {versions['torch']}, "
        f"ditkit {versions.get('commit', versions['ditkit'])}"
    )
