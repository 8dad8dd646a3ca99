"""What every whole network has in common: it is told the time and the label, and runs in three parts.

A backbone maps (x, t, cond) to a tensor. It knows no diffusion and drops no conditions; what its output
means is the transport's affair.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.nn.blocks import summed
from ditkit.nn.embeddings import LabelEmbedding, SideBySide, TimeEmbedding

Cond = dict[str, Tensor]


class Backbone(nn.Module):
    """(x (B, C, H, W), t (B,) or per token (B, L), cond) -> (B, C', H, W).

    `forward` is `head(body(embed(x)))`, so that another network can wrap the body. `blocks` are the
    repeated parts in the order they run: what is compiled, sharded or checkpointed one by one.
    """

    classes: int  # 0: unconditional
    time: TimeEmbedding | SideBySide
    label: LabelEmbedding | SideBySide | None
    blocks: nn.ModuleList

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        c = self.condition(t, cond)
        return self.head(self.body(self.embed(x), c), c, x.shape[2:])

    def condition(self, t: Tensor, cond: Cond | None) -> Tensor:
        """What the blocks are told of time and label."""
        time = self.time(t)
        if self.label is None:
            return self.told(time, None)
        if cond is None or "label" not in cond:
            raise InputError(f"this network has {self.classes} classes: give cond a 'label' of shape (B,)")
        return self.told(time, self.label(cond["label"]))

    def told(self, time: Tensor, label: Tensor | None) -> Tensor:
        """The embedded time and label as one: their sum, (B, D), or (B, L, D) for a time per token."""
        return summed(time, label)

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """The state as what the blocks work on."""

    @abstractmethod
    def body(self, h: Tensor, c: Tensor) -> Tensor:
        """The blocks."""

    @abstractmethod
    def head(self, h: Tensor, c: Tensor, size: torch.Size) -> Tensor:
        """The output for a state of that height and width."""

    @abstractmethod
    def check_size(self, height: int, width: int) -> None:
        """InputError, naming the remedy, when the network cannot take a state of that size."""

    def fused(self) -> "Backbone":
        """What to sample with: the same function, where possible of fewer products; itself otherwise.

        A copy with weights of its own, in the same mode, that is never saved: weights in files are those
        that are trained.
        """
        return self

    def null(self, cond: Cond) -> Cond:
        """The same keys, every entry "unknown"."""
        return {key: torch.full_like(value, self.classes) for key, value in cond.items()}
