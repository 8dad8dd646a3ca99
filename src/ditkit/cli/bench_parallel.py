"""`ditkit bench --parallel RECIPE`: what sharing a training among processes costs, on this machine."""

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from ditkit.cli.measured import check_record, machine, write
from ditkit.cli.parsing import parse
from ditkit.config import Section
from ditkit.costs.plan import bytes_moved
from ditkit.errors import InputError
from ditkit.progress import progress_bar
from ditkit.recipe import Recipe
from ditkit.recipes import recipe as named_recipe
from ditkit.scoring import software
from ditkit.training.footprint import Training

MB = 1e6
Sharing = Literal["ddp", "fsdp"]


class ParallelBenchCommand(Section):
    """Train a recipe in 1, 2 and 4 processes of one thread each, by DDP and by FSDP, in turn: time of a step, memory, what is
    sent and what was planned to be, and checkpoints.

    Images, labels and texts are made up. The processes share the cores of one machine: this shows what sharing costs, not how much
    faster several GPUs are. Memory is the peak of tensors' bytes in the process that has the most. What is sent is counted at
    the collectives, as if in a ring. Leave the machine alone meanwhile.
    """

    parallel: str
    """A recipe, as in `ditkit list recipes`."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Images of a step, of all processes together."""
    processes: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4)
    """Numbers of processes."""
    kinds: tuple[Sharing, ...] = ("ddp", "fsdp")
    """How several share it."""
    rounds: Annotated[int, Field(ge=1)] = 7
    """Steps that are timed of each, in turn; medians are printed."""
    out: Path | None = None
    """Write the record, every time measured included, to this JSON file."""
    replace: bool = False
    """Write over a file that is there."""


class Way(NamedTuple):
    """A way of sharing."""

    processes: int
    kind: str

    def __str__(self) -> str:
        return f"{self.processes} {'process' if self.processes == 1 else f'processes, {self.kind}'}"


def run(argv: list[str]) -> None:
    command = parse(ParallelBenchCommand, argv, "bench")
    check_record(command.out, command.replace)
    recipe = named_recipe(command.parallel)
    if command.batch < max(command.processes):
        raise InputError(
            f"--batch {command.batch} is less than the {max(command.processes)} processes; give each at least one image"
        )
    ways = [
        Way(count, kind)
        for count in dict.fromkeys(command.processes)
        for kind in (("none",) if count == 1 else command.kinds)
    ]
    found = measured(recipe, ways, command.batch, command.rounds)
    rows = [row_of(way, recipe, command.batch, some) for way, some in zip(ways, found, strict=True)]
    record = {
        "machine": machine() | {"threads": 1, "cores": os.cpu_count()},
        "software": software(),
        "recipe": recipe.name,
        "batch": command.batch,
        "rows": rows,
    }
    print("\n".join(_report(record)))
    write(record, command.out)


def measured(recipe: Recipe, ways: Sequence[Way], batch: int, rounds: int) -> list[dict[str, Any]]:
    """What each way takes: all are there at once, and work in turn."""
    with ExitStack() as until_end, progress_bar(len(ways) * (rounds + 5), "bench", "call") as bar:
        groups = []
        for way in ways:
            chosen = recipe.replace(
                train={
                    "parallel": "auto" if way.kind == "none" else way.kind,
                    "compile": "off",
                    "batch": batch,
                }
            )
            groups.append(until_end.enter_context(_started(chosen, way.processes, batch)))
            bar.update()
        found: list[dict[str, Any]] = [{"times": []} for _ in ways]
        for word in ["step", "step", *["timed"] * rounds, "count", "save"]:
            for group, some in zip(groups, found, strict=True):
                answer = _called(group, "step" if word == "timed" else word)
                if word == "timed":
                    some["times"].append(answer["seconds"])
                elif word != "step":
                    some.update(answer)
                bar.update()
    return found


@contextmanager
def _started(recipe: Recipe, count: int, batch: int) -> Iterator[subprocess.Popen]:
    """So many processes that train the recipe; the first one, which is spoken to."""
    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="ditkit-bench-") as folder:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        recipe.write(Path(folder) / "recipe.json")
        own = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": str(count),
            "OMP_NUM_THREADS": "1",
        }
        own["TORCH_CPP_LOG_LEVEL"] = "ERROR"
        words = [
            sys.executable,
            "-m",
            "ditkit.cli.parallel_worker",
            str(Path(folder) / "recipe.json"),
            str(batch),
        ]
        group = [
            subprocess.Popen(
                words,
                env={**os.environ, **own, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for rank in range(count)
        ]  # fmt: skip
        try:
            yield group[0]
            with suppress(subprocess.TimeoutExpired):
                group[0].communicate("", timeout=60)  # the end of its orders ends all of them
        finally:
            for process in group:
                process.kill()
            for process in group:
                process.communicate()


def _called(first: subprocess.Popen, word: str) -> dict[str, Any]:
    """What a group of processes answers."""
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdin.write(f"{word}\n")
    first.stdin.flush()
    line = first.stdout.readline()
    if not line:
        raise InputError("bench: a process that was measured has ended; its own message says why")
    return json.loads(line)


def row_of(way: Way, recipe: Recipe, batch: int, found: dict[str, Any]) -> dict[str, Any]:
    """Times in milliseconds, bytes as they are."""
    footprint = Training(recipe).footprint()
    several = way.processes > 1
    shard = way.processes if way.kind == "fsdp" else 1
    passes = math.ceil(math.ceil(batch / way.processes) / (recipe.train.micro_batch or batch))
    planned = bytes_moved(
        way.kind if several else "none",  # type: ignore[arg-type]
        footprint.gathered(bf16=False),
        footprint.gradients,
        way.processes,
        shard,
        passes,
    )
    step = median(found["times"])
    return {
        "processes": way.processes,
        "parallel": way.kind,
        "step_ms": 1000 * step,
        "images_per_second": batch / step,
        "memory": found["memory"],
        "sent": sum(found["moved"].values()),
        "sent_by_kind": found["moved"],
        "planned": sum(planned),
        **{f"save_{name}_ms": 1000 * found[name] for name in ("stall", "written", "read")},
        "times_ms": [1000 * seconds for seconds in found["times"]],
    }


def _report(record: dict) -> Iterator[str]:
    yield f"{'':22s}{'':10s}{'':10s}{'memory':>10s}{'sent a':>10s}{'':>10s}{'checkpoint, ms':>34s}"
    yield (
        f"{'':22s}{'ms a step':>10s}{'images/s':>10s}{'each, MB':>10s}{'step, MB':>10s}{'planned':>10s}"
        f"{'training waits':>16s}{'written':>9s}{'read':>9s}"
    )
    for row in record["rows"]:
        yield (
            f"{Way(row['processes'], row['parallel'])!s:22s}{row['step_ms']:10.1f}{row['images_per_second']:10.1f}"
            f"{row['memory'] / MB:10.1f}{row['sent'] / MB:10.2f}{row['planned'] / MB:10.2f}"
            f"{row['save_stall_ms']:16.0f}{row['save_written_ms']:9.0f}{row['save_read_ms']:9.0f}"
        )
    machine, versions = record["machine"], record["software"]
    yield (
        f"\n{record['recipe']}, batch {record['batch']}; {machine['cpu']}, {machine['cores']} cores shared by all, one thread each, "
        f"gloo, torch {versions['torch']}, ditkit {versions.get('commit', versions['ditkit'])}"
    )
