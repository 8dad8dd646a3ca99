"""How a state is made of parts, so that everything else can treat it element by element.

A clip's parts are its frames, each of which can have a noise level of its own.

The levels of a pyramid, several resolutions of one image, are packed in channels: a level r times as large as the
lowest, (B, C, r h, r w), is r² C channels of the lowest's h × w, as `torch.pixel_unshuffle` orders them. So a pyramid
is a state like any other, of a height and a width, and whatever holds for a level holds for some channels. Of clips a level
can have q times as many frames, too; frames that follow each other are then further channels, q r² C in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ditkit.device import numbers
from ditkit.errors import InputError
from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


Cond = dict[str, "Tensor"]
"""What a network is conditioned on, by name: "label" (B,), a text's "text" (B, M, D), ..."""


@dataclass(frozen=True)
class Layout:
    """A state of one part: one noise level, one loss, whatever its shape.

    States of several parts (the levels of a pyramid, the frames of a clip) subclass it.
    """

    shape: tuple[int, ...]
    """Of one state, without the batch."""
    parts: int = 1

    @property
    def share(self) -> float:
        """What the mean loss of a part counts in the state's."""
        return 1.0

    def expand(self, values: Tensor) -> Tensor:
        """(B,) or (B, K) values, one per part, to what broadcasts with a state (B, *shape)."""
        return values.reshape(len(values), *[1] * len(self.shape))

    def mean(self, x: Tensor) -> Tensor:
        """The mean over each part: (B, *shape) -> (B, K)."""
        return torch.stack([part.flatten(1).mean(1) for part in self.split(x)], dim=1)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """Each part's own numbers, (B, ...)."""
        return [x]


@dataclass(frozen=True)
class Frames(Layout):
    """The frames of a clip: states (B, C, F, H, W)."""

    @classmethod
    def of(cls, channels: int, frames: int, height: int, width: int) -> Frames:
        return cls((channels, frames, height, width), frames)

    @property
    def share(self) -> float:
        return 1 / self.parts

    def expand(self, values: Tensor) -> Tensor:
        """(B,) or (B, F) to (B, 1, 1, 1, 1) or (B, 1, F, 1, 1)."""
        return values.reshape(len(values), 1, -1, 1, 1)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        return x.unbind(2)


@dataclass(frozen=True)
class Pyramid(Layout):
    """The resolutions of one image, the highest first, packed in channels: states (B, sum of r² C, h, w)."""

    ratios: tuple[int, ...] = (1,)
    """How many times each level's sides are the lowest's."""
    frame_ratios: tuple[int, ...] = (1,)
    """How many times each level's frames are the lowest's."""

    @classmethod
    def of(
        cls, channels: int, *size: int, ratios: Sequence[int], frame_ratios: Sequence[int] = ()
    ) -> Pyramid:
        """For an image, (H, W), or clip, (F, H, W), of that size at the highest level; the same frames in all levels
        without `frame_ratios`. InputError where the ratios do not divide it, or each other."""
        check_ratios(ratios)
        frame_ratios = tuple(frame_ratios) or (1,) * len(ratios)
        *length, height, width = size
        if height % ratios[0] or width % ratios[0]:
            raise InputError(
                f"a state of {height}x{width} has no levels of {_with_colons(ratios)}; its sides must be multiples of "
                f"{ratios[0]}: change `data.size` (times the codec's downsampling) or the backbone's levels"
            )
        if frame_ratios[0] > 1 and (not length or length[0] % frame_ratios[0]):
            raise InputError(
                f"{'an image' if not length else f'a clip of {length[0]} frames'} has no levels of {_with_colons(frame_ratios)} "
                f"in frames; give clips with a multiple of {frame_ratios[0]}: change `data.frames` or the backbone's levels"
            )
        packed = channels * sum(packing(ratios, frame_ratios))
        low = [count // frame_ratios[0] for count in length]
        shape = (packed, *low, height // ratios[0], width // ratios[0])
        return cls(shape, len(ratios), tuple(ratios), frame_ratios)

    def expand(self, values: Tensor) -> Tensor:
        """(B,) or (B, K) to (B, 1, 1, 1) or (B, channels, 1, 1), of clips with one dimension more."""
        if values.ndim == 2:
            counts = numbers(self._channels, values.device)
            values = values.repeat_interleave(counts, dim=1, output_size=self.shape[0])
        return values.reshape(len(values), -1, *[1] * (len(self.shape) - 1))

    def split(self, x: Tensor) -> Sequence[Tensor]:
        return x.split(self._channels, dim=1)

    @property
    def _channels(self) -> list[int]:
        return channels_of(self.shape[0], packing(self.ratios, self.frame_ratios))


@dataclass(frozen=True)
class Packed(Layout):
    """Several states of different sizes in one: (1, M), one after another, each a part."""

    lengths: tuple[int, ...] = ()
    """Numbers of each."""

    @classmethod
    def of(cls, shapes: Sequence[torch.Size]) -> Packed:
        lengths = tuple(shape.numel() for shape in shapes)
        return cls((sum(lengths),), len(lengths), lengths)

    def expand(self, values: Tensor) -> Tensor:
        """(1,) or (1, K) to (1, 1) or (1, M)."""
        if values.ndim == 1:
            return values[:, None]
        counts = numbers(self.lengths, values.device)
        return values.repeat_interleave(counts, dim=1, output_size=self.shape[0])

    def split(self, x: Tensor) -> Sequence[Tensor]:
        return x.split(self.lengths, dim=1)


def layout_of(channels: int, *size: int) -> Layout:
    """Of states (B, channels, H, W), or of clips (B, channels, F, H, W)."""
    return Frames.of(channels, *size) if len(size) == 3 else Layout((channels, *size))


def packing(ratios: Sequence[int], frame_ratios: Sequence[int]) -> list[int]:
    """How many numbers of each level are where the lowest has one."""
    return [frames * ratio**2 for ratio, frames in zip(ratios, frame_ratios, strict=True)]


def channels_of(packed: int, numbers: Sequence[int]) -> list[int]:
    """How many of the packed channels are each level's, of which there are so many `numbers` for one of the lowest."""
    return [packed * number // sum(numbers) for number in numbers]


def unpack(x: Tensor, ratios: Sequence[int], frame_ratios: Sequence[int] = ()) -> list[Tensor]:
    """A packed pyramid (B, channels, h, w) to its levels (B, C, r h, r w), the highest first; of clips
    (B, channels, f, h, w) to (B, C, q f, r h, r w)."""
    frame_ratios = tuple(frame_ratios) or (1,) * len(ratios)
    levels = x.split(channels_of(x.shape[1], packing(ratios, frame_ratios)), dim=1)
    if x.ndim == 4:
        return [torch.pixel_shuffle(level, ratio) for level, ratio in zip(levels, ratios, strict=True)]
    clips = []
    for level, ratio, frames in zip(levels, ratios, frame_ratios, strict=True):
        shuffled = torch.pixel_shuffle(level.transpose(1, 2), ratio)  # (B, f, q C, r h, r w)
        clips.append(shuffled.unflatten(2, (frames, -1)).flatten(1, 2).transpose(1, 2))
    return clips


def pack(levels: Sequence[Tensor], ratios: Sequence[int], frame_ratios: Sequence[int] = ()) -> Tensor:
    """The levels, the highest first, as one state: what `unpack` undoes."""
    frame_ratios = tuple(frame_ratios) or (1,) * len(ratios)
    if levels[0].ndim == 4:
        parts = [torch.pixel_unshuffle(level, ratio) for level, ratio in zip(levels, ratios, strict=True)]
        return torch.cat(parts, dim=1)
    parts = []
    for level, ratio, frames in zip(levels, ratios, frame_ratios, strict=True):
        grouped = level.transpose(1, 2).unflatten(1, (-1, frames)).flatten(2, 3)  # (B, f, q C, r h, r w)
        parts.append(torch.pixel_unshuffle(grouped, ratio).transpose(1, 2))
    return torch.cat(parts, dim=1)


def check_ratios(ratios: Sequence[int]) -> None:
    """InputError unless every ratio is a multiple of the next and the last is 1."""
    if any(high <= low or high % low for high, low in pairwise(ratios)) or ratios[-1] != 1:
        raise InputError(
            f"levels of {_with_colons(ratios)}: each must be a multiple of the next, and the last be 1"
        )


def _with_colons(ratios: Sequence[int]) -> str:
    return ":".join(map(str, ratios))
