"""The moving average of the weights, counted in images."""

import copy

import torch
from torch import Tensor

from ditkit.backbones import Backbone


class Ema:
    """A copy of a network whose parameters follow the trained ones.

    After a batch of b images each average is lerped by 1 - 0.5^(b / half_life), the half-life in
    images. `rampup` limits it to that share of the images seen, so that short runs average something
    other than their start (Karras et al., 2022, appendix F.2).
    """

    def __init__(self, net: Backbone, half_life: float, rampup: float | None):
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self._half_life, self._rampup = half_life, rampup
        self._average: list[Tensor] = list(self.net.parameters())
        self._source: list[Tensor] = list(net.parameters())

    @torch.no_grad()
    def update(self, batch: int, seen: int) -> None:
        """After a step on `batch` images that brought the count to `seen`."""
        half_life = self._half_life if self._rampup is None else min(self._half_life, self._rampup * seen)
        torch._foreach_lerp_(self._average, self._source, 1 - 0.5 ** (batch / half_life))
