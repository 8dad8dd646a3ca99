"""What training steps reach on several GPUs, each with as many images; torchrun starts the processes as `python -m
ditkit.benchmarks.several_gpus JSON`."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ditkit.backbones import compile_blocks
from ditkit.benchmarks.gpu import (
    WARM,
    Work,
    batch_of,
    filled,
    images_that_fit,
    peak_bytes,
    recipe_of,
    spent,
    training,
)
from ditkit.costs import recipe_cost
from ditkit.costs.plan import Kind
from ditkit.errors import InputError
from ditkit.processes import Processes, joined
from ditkit.training.planning import Counted

GRACE = 15
"""Seconds in which torchrun ends its processes when it is asked to."""


def several(work: Work, kind: Kind, count: int, seconds: float) -> dict[str, Any]:
    """Training steps in `count` processes, each on its own GPU with as many images, started by torchrun. InputError where they
    fail, or take longer than `seconds`."""
    with TemporaryDirectory(prefix="ditkit-gpu-") as folder:
        file = Path(folder) / "found.json"
        words = json.dumps({"work": work, "kind": kind, "file": str(file)})
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        command += [f"--nproc-per-node={count}", "-m", "ditkit.benchmarks.several_gpus", words]
        torchrun = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, printed = torchrun.communicate(timeout=max(seconds - GRACE, 0))
        except subprocess.TimeoutExpired:
            raise InputError(f"did not end within {seconds:.0f} s") from None
        finally:
            torchrun.terminate()  # which ends its processes
            with suppress(subprocess.TimeoutExpired):
                torchrun.wait(GRACE)
            torchrun.kill()
        if torchrun.returncode or not file.exists():
            raise InputError(f"torchrun: {_last_error(printed)}")
        return json.loads(file.read_text(encoding="utf-8"))


def _last_error(text: str) -> str:
    """The line of a process's output that says what was wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [line for line in lines if "Error" in line and "ChildFailedError" not in line]
    return (found or lines or ["it says nothing"])[-1][:200]


def _one_of_several(work: Work, kind: Kind, file: Path) -> None:
    device = torch.device(work.device)
    with joined(device) as processes:
        device = processes.own_device(device)
        recipe = recipe_of(work.network)
        images = work.images or images_that_fit(Counted(recipe), device)
        images = -processes.most(-images)[0]  # as many as fit on all of them
        recipe = recipe.replace(train={"batch": images * processes.world})
        net = filled(recipe, device)
        batch = batch_of(recipe, images * processes.world, device)
        batch = batch.take(slice(processes.rank, None, processes.world))
        step = training(recipe, net, batch, device, kind, processes)
        if work.compiled:
            compile_blocks(net)
        a_step = _together(step, device, processes, work.seconds)
        total, macs = images * processes.world, recipe_cost(recipe).macs
        if processes.first:
            found = {
                "network": work.network,
                "kind": kind,
                "compiled": work.compiled,
                "gpus": processes.world,
                "images": images,
                "step_ms": 1000 * a_step,
                "images_per_second": total / a_step,
                "step_flops": 6 * macs * images / a_step,
                "memory": peak_bytes(device, 0),
            }
            file.write_text(json.dumps(found), encoding="utf-8")


def _together(
    step: Callable[[], object], device: torch.device, processes: Processes, seconds: float
) -> float:
    """Seconds of a step; all processes take as many."""
    for _ in range(WARM):
        step()
    microseconds = processes.most(round(1e6 * spent(step, 1, device)))[0]
    calls = max(1, round(seconds / 5 / max(microseconds * 1e-6, 1e-6)))
    return median(spent(step, calls, device) for _ in range(5))


def main(words: str) -> None:
    """One of several processes: what `several` asks for."""
    wanted = json.loads(words)
    _one_of_several(Work(*wanted["work"]), wanted["kind"], Path(wanted["file"]))


if __name__ == "__main__":
    main(sys.argv[1])
