"""One of the processes that `ditkit bench --parallel` measures; it does what it is called for on its standard input."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ditkit.benchmarks.latents import CPU
from ditkit.benchmarks.training import Worker
from ditkit.heap import keep_freed_memory
from ditkit.processes import joined
from ditkit.recipe import Recipe


def main() -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    recipe, batch = Recipe.read(Path(sys.argv[1])), int(sys.argv[2])
    with joined(CPU) as processes:
        worker = Worker(recipe, batch, processes)
        acts: dict[str, Callable[[], dict]] = {
            "step": worker.step, "count": worker.count, "save": worker.save,
        }  # fmt: skip
        while True:
            word = processes.from_first(sys.stdin.readline().strip() if processes.first else "")
            if word not in acts:
                return
            found = acts[word]()
            if processes.first:
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
