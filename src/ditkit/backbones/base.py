"""What every whole network has in common, and what those of one resolution have: three parts.

A backbone maps (x, t, cond) to a tensor. It knows no diffusion and drops no conditions; what its output
means is the transport's affair.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.layout import Cond
from ditkit.nn.around import Around, alone
from ditkit.nn.blocks import summed
from ditkit.nn.embeddings import LabelEmbedding, ScalarEmbedding, SideBySide, TimeEmbedding
from ditkit.nn.text import TextReader, Words


class Conditions(NamedTuple):
    """What a network is conditioned on besides the time, embedded."""

    label: Tensor | None = None  # (B, D)
    text: Tensor | None = None  # (B, D), of a text as a whole
    words: Words | None = None
    size: tuple[int, ...] = ()
    """The size of the state, (H, W) or (F, H, W)."""
    scale: Tensor | None = None
    """(B,), not embedded: the original images' size in pixels, for the networks that read it (MDM)."""
    scalars: tuple[Tensor, ...] = ()
    """(B, D) each: further numbers that the network reads."""

    @property
    def vectors(self) -> list[Tensor]:
        return [vector for vector in (self.label, self.text, *self.scalars) if vector is not None]


class BodyShape(NamedTuple):
    """The sizes that a level put around a network's body must fit."""

    input_channels: int
    """Of the map that `embed` returns."""
    output_channels: int
    """Of the map that `body` returns."""
    condition_width: int
    """Channels of the vectors of label and text."""
    patch: int = 1
    """Pixels of the state along a side of one position in those maps."""


class Backbone(nn.Module):
    """(x (B, C, H, W), t (B,), cond) -> (B, C', H, W); a network of clips also (B, C, F, H, W) -> (B, C', F, H, W).

    cond has "label" (B,) where the network has classes, and a text where it takes one (`nn/text.py`).
    """

    classes: int  # 0: unconditional
    blocks: nn.ModuleList  # what repeats, in the order it runs

    @property
    def repeated(self) -> list[nn.Module]:
        """The parts that are compiled, sharded or checkpointed one by one."""
        return list(self.blocks)

    @property
    @abstractmethod
    def text_dim(self) -> int:
        """Channels of the text encoder whose texts it takes; 0 where it takes none."""

    @abstractmethod
    def forward(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, around: Around | None = None
    ) -> Tensor:
        """`around` is called in place of each of `blocks`, with its number (`nn/around.py`)."""

    def packed(
        self, states: Sequence[Tensor], t: Tensor, cond: Cond | None, *, around: Around | None = None
    ) -> list[Tensor]:
        """What `forward` gives for each of N states (C, *size) at times t (N,), all tokens in one sequence. InputError for a
        network that cannot."""
        raise InputError(f"`train.packed`: a {type(self).__name__} takes no packed rows; leave it out")

    @abstractmethod
    def read_scalars(self, names: Sequence[str]) -> None:
        """Also read numbers from cond, (B,) each, by these names; until they are trained they change nothing."""

    @abstractmethod
    def null(self, cond: Cond) -> Cond:
        """The keys that the network reads, all rows "unknown"."""

    @abstractmethod
    def check_size(self, *size: int) -> None:
        """InputError, naming the remedy, when the network cannot take a state of that size, (H, W) or (F, H, W)."""

    def in_training(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """What `forward` is called with besides in training; `drawn` is what the streams of its section gave, (B, ...) by name."""
        return {}

    def fused(self) -> "Backbone":
        """What to sample with: the same function, where possible of fewer products; itself otherwise.

        A copy with weights of its own, in the same mode, that is never saved: weights in files are those
        that are trained.
        """
        return self


class Plain(Backbone):
    """A network of one resolution: `head(body(embed(x)))`, so that another can be put around the body.

    t may be per token, (B, L), where the network takes that.
    """

    time: TimeEmbedding | SideBySide
    label: LabelEmbedding | SideBySide | None
    body_shape: BodyShape

    def __init__(self) -> None:
        super().__init__()
        self.text: TextReader | None = None
        self.scalars = nn.ModuleDict()

    def read_scalars(self, names: Sequence[str]) -> None:
        self.scalars = nn.ModuleDict(
            {name: ScalarEmbedding(self.body_shape.condition_width) for name in names}
        )

    def forward(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, around: Around | None = None
    ) -> Tensor:
        conditions = self.conditions(cond or {}, x.shape[2:])
        c = self.condition(t, conditions)
        return self.head(self.body(self.embed(x), c, conditions, around or alone), c, x.shape[2:])

    @property
    def text_dim(self) -> int:
        return 0 if self.text is None else self.text.dim

    def conditions(self, cond: Cond, size: Sequence[int]) -> Conditions:
        """Label and text, embedded, and the state's size. InputError where the network needs one that is not there."""
        label = None
        if self.label is not None:
            if "label" not in cond:
                raise InputError(
                    f"this network has {self.classes} classes: give cond a 'label' of shape (B,)"
                )
            label = self.label(cond["label"])
        text, words = (None, None) if self.text is None else self.text(cond)
        if missing := [name for name in self.scalars if name not in cond]:
            raise InputError(f"this network reads {missing[0]!r}: give cond a number (B,) of that name")
        scalars = tuple(embedding(cond[name]) for name, embedding in self.scalars.items())
        return Conditions(label, text, words, tuple(size), scalars=scalars)

    def condition(self, t: Tensor, conditions: Conditions) -> Tensor:
        """The embedded time, label and text as a whole, as one."""
        return self.combined(self.time(t), *conditions.vectors)

    def combined(self, time: Tensor, *others: Tensor) -> Tensor:
        """The embedded time, label and text as one: their sum, (B, D), or (B, L, D) for a time per token."""
        return summed(time, *others)

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """The state as what the blocks work on."""

    @abstractmethod
    def body(self, h: Tensor, c: Tensor, conditions: Conditions, around: Around = alone) -> Tensor:
        """The blocks, conditioned by c; of what is conditions, on the words and the size."""

    @abstractmethod
    def head(self, h: Tensor, c: Tensor, size: torch.Size) -> Tensor:
        """The output for a state of that size."""

    def from_map(self, m: Tensor) -> Tensor:
        """A map (B, D, H / patch, W / patch), of clips (B, D, F, ...), in the form of what `embed` gives: here the map
        itself."""
        return m

    def to_map(self, h: Tensor, size: torch.Size) -> Tensor:
        """What `body` gives as a map, for a state of that height and width."""
        return h

    def null(self, cond: Cond) -> Cond:
        empty = {} if self.text is None else self.text.null(cond)
        if self.label is not None and "label" in cond:
            empty["label"] = torch.full_like(cond["label"], self.classes)
        return empty
