"""Further averages of the weights, beside the one that is run while training: tensors, or shards of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ditkit.averages import AVERAGES, power_widths
from ditkit.averages.files import drop_after, halved, part_name, write_stored
from ditkit.chosen import chosen
from ditkit.processes import Processes, own, together, whole
from ditkit.training.schedule import due

if TYPE_CHECKING:
    from ditkit.training.state import TrainState


class Averages:
    """Averages of a network's trained parameters, each by its own rule; made after the network is sharded.

    Nothing is gathered: each process moves the shards that it has. What is frozen, and buffers, are as in the first average.
    """

    def __init__(self, net: nn.Module, choices: Sequence[str]):
        """By `train.averages`. ValueError as of `ditkit.chosen.split`."""
        self._net, self.choices = net, tuple(choices)
        self._rules = [chosen(AVERAGES, choice) for choice in choices]
        self.tensors = [self._copy() for _ in choices]
        """Of each average the parameters, by name."""

    def _copy(self) -> dict[str, Tensor]:
        return {
            name: value.detach().clone()
            for name, value in self._net.named_parameters()
            if value.requires_grad
        }

    @property
    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The averages by their files in a checkpoint."""
        return {part_name(place): tensors for place, tensors in enumerate(self.tensors)}

    @torch.no_grad()
    def update(self, batch: int, seen: int, taken: Tensor) -> None:
        """As `Ema.update`."""
        if not self._rules:
            return
        source = [own(value) for value in self._net.parameters() if value.requires_grad]
        for rule, tensors in zip(self._rules, self.tensors, strict=True):
            weight = taken.float() * rule(batch, seen)
            torch._foreach_lerp_([own(value) for value in tensors.values()], source, [weight] * len(source))


class Storing:
    """A hook that writes the power averages of a run into its folder when that is due (`ditkit.averages.files`)."""

    def __init__(self, averages: Averages, out: Path, every: int, last: int, seen: int, processes: Processes):
        """Every so many images, never for 0, and after the `last`. Files of more images than `seen` are removed: the run goes on
        from there. All processes make one; the first writes. InputError as of `drop_after`."""
        self._averages, self._out, self._every, self._last = averages, out, every, last
        self._widths, self._processes = power_widths(averages.choices), processes
        if processes.first:
            drop_after(out, seen)

    def __call__(self, state: "TrainState", before: int, seen: int) -> None:
        """InputError as of `write_stored`."""
        if not self._every or not due(self._every, before, seen, self._last):
            return
        with torch.no_grad(), together():
            found = {place: self._halved(self._averages.tensors[place]) for place in self._widths}
        if self._processes.first:
            write_stored(self._out, seen, found, self._widths)

    def _halved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole in the first process, one after the other; nothing in the others."""
        found = {}
        for name, value in tensors.items():
            gathered = whole(value)
            if self._processes.first:
                found[name] = halved(gathered)
        return found
