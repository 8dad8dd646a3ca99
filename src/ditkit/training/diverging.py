"""A training that goes wrong: where its numbers stopped being finite, and going back to before.

Steps whose gradient is not finite are left out and counted (`Skipped`); a loss that rises is seen in the log (`Log`). Both
are judged when a line of the log is due, in all processes alike.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditkit.checkpoint import checkpoints
from ditkit.data import Batch
from ditkit.errors import NotFinite
from ditkit.training.state import TrainState

log = logging.getLogger(__name__)

LOWER = 0.5
"""By this the learning rate is multiplied when a run goes back."""
LEAST = 1 / 64
"""A run whose rate would be multiplied by less stops."""


class Diverged(NotFinite):
    """A run has left what it was learning; `images` is how many it had seen when it was well, at most."""

    def __init__(self, message: str, images: int):
        super().__init__(message)
        self.images = images


@torch.no_grad()
def where_not_finite(losses: Callable[[Batch], Mapping[str, Tensor]], module: nn.Module, batch: Batch) -> str:
    """Words on a batch whose gradient was not finite: the first part of `module` whose output is not, and the images."""
    first: list[str] = []

    def look(name: str, part: nn.Module, inputs: Any, output: Any) -> None:
        several = output if isinstance(output, tuple | list) else (output,)
        lost = any(isinstance(value, Tensor) and not value.isfinite().all() for value in several)
        if lost and not first:
            first.append(name)

    hooks = [part.register_forward_hook(partial(look, name)) for name, part in module.named_modules() if name]
    try:
        found = losses(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if first:
        where = f"the first output that is not finite is that of {first[0]}"
    elif not found["loss"].isfinite().all():
        where = "all outputs of the network are finite and the loss is not"
    else:
        where = "the loss is finite and its gradient is not"
    numbers = batch.index.tolist()
    images = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"{where}, in the step of images {images}"


def go_back(state: TrainState, folder: Path, error: Diverged, keep: int) -> None:
    """Take the state back to the newest checkpoint in `folder` of before it diverged, with a lower learning rate, and keep
    that there. All processes call it. NotFinite where there is none, or the rate is low already."""
    state.finish_saving()
    rate = LOWER * state.rate
    if rate < LEAST:
        raise NotFinite(
            f"{error}; it went back with {state.rate:g} of `train.lr` before: give a lower one and train anew"
        )
    with state.processes.in_turn():
        if state.processes.first:
            for path in checkpoints(folder):
                if int(path.name) > error.images:
                    shutil.rmtree(path)
    if not state.load(folder):
        raise NotFinite(f"{error}; there is no checkpoint to go back to: train anew with a lower `train.lr`")
    state.notes["rate"] = rate
    state.save(folder, keep)
    state.finish_saving()
    log.warning(f"{error}; going back to {state.images:,} images, with {rate:g} of `train.lr`")
