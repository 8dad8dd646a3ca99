"""What every whole network has in common: it is told the time, a label, a text, and runs in three parts.

A backbone maps (x, t, cond) to a tensor. It knows no diffusion and drops no conditions; what its output
means is the transport's affair.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.nn.blocks import summed
from ditkit.nn.embeddings import LabelEmbedding, SideBySide, TimeEmbedding
from ditkit.nn.text import TextEmbedding, Words

Cond = dict[str, Tensor]


class Backbone(nn.Module):
    """(x (B, C, H, W), t (B,) or per token (B, L), cond) -> (B, C', H, W).

    cond has "label" (B,) where the network has classes, and a text where it is told one (`nn/text.py`).

    `forward` is `head(body(embed(x)))`, so that another network can wrap the body. `blocks` are in the
    order they run.
    """

    classes: int  # 0: unconditional
    time: TimeEmbedding | SideBySide
    label: LabelEmbedding | SideBySide | None
    blocks: nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self.text: TextEmbedding | None = None

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        c = self.condition(t, cond)
        words = None if self.text is None else self.text.words(cond or {})
        return self.head(self.body(self.embed(x), c, words), c, x.shape[2:])

    @property
    def repeated(self) -> list[nn.Module]:
        """The parts that are compiled, sharded or checkpointed one by one."""
        return list(self.blocks)

    def condition(self, t: Tensor, cond: Cond | None) -> Tensor:
        """What the blocks are told of time, label and a text as a whole."""
        cond = cond or {}
        label = None
        if self.label is not None:
            if "label" not in cond:
                raise InputError(
                    f"this network has {self.classes} classes: give cond a 'label' of shape (B,)"
                )
            label = self.label(cond["label"])
        return self.told(self.time(t), label, None if self.text is None else self.text.vector(cond))

    def told(self, time: Tensor, *others: Tensor | None) -> Tensor:
        """The embedded time, label and text as one: their sum, (B, D), or (B, L, D) for a time per token."""
        return summed(time, *others)

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """The state as what the blocks work on."""

    @abstractmethod
    def body(self, h: Tensor, c: Tensor, words: Words | None = None) -> Tensor:
        """The blocks; `words` where the network attends to a text."""

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
        """The keys that the network reads, every entry "unknown"."""
        empty = {} if self.text is None else self.text.null(cond)
        if self.label is not None and "label" in cond:
            empty["label"] = torch.full_like(cond["label"], self.classes)
        return empty
