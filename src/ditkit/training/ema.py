"""The moving average of the weights, counted in images, as a network that can be run; further ones are `averages.py`'s."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ditkit.averages.profiles import half_life
from ditkit.processes import own

Module = TypeVar("Module", bound=nn.Module)
Other = TypeVar("Other", bound=nn.Module)


class Ema(Generic[Module]):
    """A copy of a network whose parameters follow the trained ones; those that are frozen it shares.

    After a batch of b images each average is lerped by 1 - 0.5^(b / half_life), the half-life in
    images. `rampup` limits it to that share of the images seen, so that short runs average something
    other than their start (Karras et al., 2022, appendix F.2).
    """

    def __init__(self, net: Module, half_life: float, rampup: float | None):
        # What is frozen is its own average: no second copy.
        frozen = {id(parameter): parameter for parameter in net.parameters() if not parameter.requires_grad}
        self.net = copy.deepcopy(net, frozen).eval().requires_grad_(False)
        self._trained, self._half_life, self._rampup = net, half_life, rampup

    def of(self, module: Other) -> "Ema[Other]":
        """The average, with the same half-life, of another module."""
        return Ema(module, self._half_life, self._rampup)

    @torch.no_grad()
    def update(self, batch: int, seen: int, taken: Tensor) -> None:
        """After a step on `batch` images that brought the count to `seen`; `taken`, bool (), says on the device whether
        the step changed the weights, otherwise the average stays as it is."""
        weight = taken.float() * half_life(batch, seen, images=self._half_life, rampup=self._rampup)
        pairs = zip(self.net.parameters(), self._trained.parameters(), strict=True)
        trained = [(own(average), own(source)) for average, source in pairs if source.requires_grad]
        average, source = map(list, zip(*trained, strict=True))
        torch._foreach_lerp_(average, source, [weight] * len(average))
