"""Processes as torchrun starts them, for tests: trainings in each, in float64 where rounding must not matter."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from ditkit.processes import joined
from ditkit.recipe import Recipe
from ditkit.training import train

TESTS = Path(__file__).parent
PATIENCE = 900  # seconds, on a machine that is busy with other things


def start(count: int, *words: object, **environment: str) -> list[subprocess.Popen]:
    """So many processes, each with the rank that torchrun would give it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """The status of each and what it printed, on stdout and on stderr."""
    try:
        printed = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, printed, strict=True)]


def trained(count: int, jobs: list[dict], **environment: str) -> None:
    """Run jobs in so many processes, one after the other: `recipe` (a file), `out`, and fields of it to change, `train`."""
    found = ended(start(count, TESTS / "several.py", json.dumps(jobs), **environment))
    assert all(status == 0 for status, _, _ in found), "\n".join(
        text for _, *texts in found for text in texts
    )


def in_float64() -> None:
    """Compute all that follows in float64, of which a network trains for many steps before its rounding shows."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double


def main(jobs: list[dict]) -> None:
    torch.set_num_threads(1)
    if os.environ.get("FLOAT64"):
        in_float64()
    with joined(torch.device("cpu")):
        for job in jobs:
            recipe = Recipe.read(Path(job["recipe"])).replace(train=job.get("train", {}))
            train(recipe, job["out"], device="cpu", progress=False)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
