"""What a training step takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Share(NamedTuple):
    """Which images of a batch these are: a process has some of them, and of those a micro-batch some."""

    places: Tensor
    """int64 (B,), rising: among the images of the whole batch."""
    total: int
    """Images of the whole batch."""


@dataclass(frozen=True)
class Batch:
    """B training images or clips.

    Those of one size are `images`, or `moments` where they were encoded before; those of several sizes are `groups`, a batch
    for each size, in the order of `index`.
    """

    images: Tensor | None
    """uint8, or numbers float32 in [-1, 1], (B, C, H, W), clips (B, C, F, H, W)."""
    label: Tensor | None
    """int64 (B,); None when the data is unlabelled."""
    index: Tensor
    """int64 (B,): the counters n."""
    caption: tuple[str, ...] | None = None
    """(B,); None when the data has no captions."""
    moments: Tensor | None = None
    """Mean and logvar of latents, float32 (B, 2 channels, h, w)."""
    groups: tuple[Batch, ...] = ()
    """Of images that are packed: each size's, without labels and captions, which are here."""
    draws: Mapping[str, Tensor] = field(default_factory=dict)
    """What the training draws for each image, by the name of the stream, (B, ...); empty where nothing needs it."""
    share: Share | None = None
    """Where its images are in the batch of all processes; None: they are all of it."""

    @property
    def encodable(self) -> Tensor:
        """What the codec of such batches encodes: the images, or where there are none the moments."""
        found = self.moments if self.images is None else self.images
        if found is None:
            raise ValueError("a batch of several sizes is encoded group by group")
        return found

    @property
    def shared(self) -> Share:
        """Where its images are in the batch of all processes."""
        return self.share or Share(torch.arange(len(self.index)), len(self.index))

    @property
    def total(self) -> int:
        """Images of the batch of all processes."""
        return self.shared.total

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W) of the images, (F, H, W) of clips, (h, w) of moments."""
        return tuple(self.encodable.shape[2:])

    def split(self, most: int) -> Iterator[Batch]:
        """Its images in batches of at most so many; groups stay together."""
        if self.groups:
            yield self
            return
        for start in range(0, len(self.index), most):
            yield self.take(slice(start, start + most))

    def take(self, rows: slice) -> Batch:
        """Some of its images, of one size, as a part of the same batch of all processes."""
        places, total = self.shared
        return Batch(
            None if self.images is None else self.images[rows],
            None if self.label is None else self.label[rows],
            self.index[rows],
            None if self.caption is None else self.caption[rows],
            None if self.moments is None else self.moments[rows],
            draws={name: values[rows] for name, values in self.draws.items()},
            share=Share(places[rows], total),
        )

    def pin_memory(self) -> Batch:
        """The same in memory that is copied to a GPU beside its work; DataLoader calls it."""

        def pinned(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.pin_memory()

        return replace(
            self,
            images=pinned(self.images),
            label=pinned(self.label),
            moments=pinned(self.moments),
            groups=tuple(group.pin_memory() for group in self.groups),
            draws={name: values.pin_memory() for name, values in self.draws.items()},
        )
