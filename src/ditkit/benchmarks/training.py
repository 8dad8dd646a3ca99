"""A training whose steps and checkpoints are measured, in one process or several."""

import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from ditkit.adapting import adapt
from ditkit.backbones import compile_blocks
from ditkit.benchmarks.latents import CPU
from ditkit.costs.footprint import Live
from ditkit.costs.sent import Sent
from ditkit.processes import Processes, own
from ditkit.recipe import Recipe
from ditkit.training.beginning import begin
from ditkit.training.footprint import planned_batch, planned_codec, planned_reader
from ditkit.training.parallel import kind_of, mesh_of
from ditkit.training.step import update


class Worker:
    """A training of a recipe, with batches of `batch` images of no content."""

    def __init__(self, recipe: Recipe, batch: int, processes: Processes, compiled: bool = False):
        self.processes = processes
        codec = planned_codec(recipe)
        net = adapt(recipe.build_backbone(), recipe.train).train()
        if compiled:
            compile_blocks(net)
        kind = kind_of(recipe.train, net, processes, CPU)
        mesh = mesh_of(kind, recipe.train.shard_size, processes, CPU)
        whole = planned_batch(recipe, codec, batch)
        self._part = whole.take(slice(processes.rank, None, processes.world))
        self.state, self.shared = begin(
            recipe, net, codec, CPU, planned_reader(recipe), kind=kind, mesh=mesh, processes=processes
        )

    def step(self) -> dict[str, float]:
        """Seconds of a step."""
        start = time.perf_counter()
        terms = self.shared.backward(self._part)
        norm = update(self.state.optimizer, None)
        self.state.advance(self._part.total, terms, norm)
        return {"seconds": time.perf_counter() - start}

    def count(self) -> dict[str, Any]:
        """Of a step: the bytes of tensors at its worst moment, the most that a process has, and those that it sends."""
        live = Live(1)
        state = self.state
        modules = [self.shared.objective, *(a.net for a in (state.average, state.auxiliary_average) if a)]
        live.follow(own(tensor) for module in modules for tensor in [*module.parameters(), *module.buffers()])
        live.follow(own(value) for kept in state.optimizer.state.values() for value in kept.values())
        live.follow(self._part.draws.values())
        with Sent() as sent, live:
            self.step()
        most = max(moment.gradients + moment.others.at(1) for moment in live.moments)
        return {"memory": self.processes.most(most)[0], "moved": sent.moved._asdict()}

    def save(self) -> dict[str, float]:
        """Seconds that a step waits for a checkpoint, until it is written, and to read it."""
        with tempfile.TemporaryDirectory(prefix="ditkit-bench-") as own_folder:
            folder = Path(self.processes.from_first(own_folder))
            times = [time.perf_counter()]
            for act in (
                lambda: self.state.save(folder, 1),
                self.state.finish_saving,
                lambda: self.state.load(folder),
            ):
                act()
                self.processes.wait()
                times.append(time.perf_counter())
        stall, written, read = (after - before for before, after in pairwise(times))
        return {"stall": stall, "written": stall + written, "read": read}
