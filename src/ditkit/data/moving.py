"""Moving digits: clips that are made of real images, for which the true motion is known.

Srivastava et al., "Unsupervised Learning of Video Representations using LSTMs" (ICML 2015), Moving MNIST: digits move
in straight lines at constant speed in a square and bounce off its borders; where they overlap, the brighter pixel is
seen. With L the room a digit of g pixels has in a square, L = size - g, its upper left corner in frame f is at

    p_f = |((p_0 + f v + L) mod 2 L) - L|    on each axis: a straight line that is folded at 0 and L

so a clip with more frames is the same clip going on. Nothing is stored but where each digit starts.

Differs: corners are real numbers and digits are drawn between pixels (bilinear), so a digit's centroid moves on exactly
straight lines; a bounce is a reflection, where the original stops at the border for a frame; no digit hits a border
on its first step, so that a caption's direction is what is seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from ditkit.data.arrays import Digits, FashionMNIST
from ditkit.data.clips import Clips, ClipSection
from ditkit.data.memory import Arrays
from ditkit.data.sources import Channels, Size, Split
from ditkit.errors import InputError
from ditkit.lazy import torch
from ditkit.randomness import generator

if TYPE_CHECKING:
    from torch import Tensor

SEEDS = {"train": 2**63, "test": 2**63 + 1}  # far from the seeds of runs
MOST = 3  # digits; a clip's first digit is the same however many there are
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = (
    "to the right", "down and to the right", "down", "down and to the left",
    "to the left", "up and to the left", "up", "up and to the right",
)  # fmt: skip


def fold(position: Tensor, room: float) -> Tensor:
    """The position on a line without borders as the one between borders at 0 and `room` that reflect."""
    return (torch.remainder(position + room, 2 * room) - room).abs()


def draw_at(glyphs: Tensor, corners: Tensor, size: int) -> Tensor:
    """Glyphs (D, g, g) with their upper left pixels at real places (D, F, 2), row and column: (D, F, size, size).

    Bilinear: a pixel i sees pixel j of a glyph at p with the weight max(0, 1 - |i - j - p|) on each axis.
    """
    distance = torch.arange(size)[:, None] - torch.arange(glyphs.shape[-1]) - corners[..., None, None]
    rows, columns = (1 - distance.abs()).clamp(min=0).unbind(2)  # (D, F, size, g) each
    return rows @ glyphs[:, None] @ columns.mT


def centroid(images: Tensor) -> Tensor:
    """The centres of brightness of images (..., H, W), row and column, in pixels: (..., 2)."""
    images = images.float()
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in images.shape[-2:])
    moments = torch.stack([(images.sum(-1) * rows).sum(-1), (images.sum(-2) * columns).sum(-1)], -1)
    return moments / images.sum((-2, -1))[..., None]


def _rising(speed: tuple[float, float]) -> tuple[float, float]:
    if not 0 < speed[0] <= speed[1]:
        raise ValueError(f"from {speed[0]:g} to {speed[1]:g}: both more than 0, the smaller first")
    return speed


class MovingDigits(ClipSection):
    """Clips of handwritten digits or clothes that move in straight lines and bounce off the borders, with captions.

    Made when they are read, from scikit-learn's digits or Fashion-MNIST: no download. The test part has images that no
    training clip has.
    """

    captioned: ClassVar[bool | None] = True
    kind: Literal["moving-digits"] = "moving-digits"
    size: Size = 32
    channels: Channels = 1
    flip: Literal[False] = False
    """Fixed: a mirrored clip would not move as its caption says."""
    digits: int = Field(default=1, ge=1, le=MOST)
    """How many move in a clip. One: its class is the clip's; more: the clips have no class."""
    glyphs: Literal["digits", "fashion-mnist"] = "digits"
    """What moves: scikit-learn's digits or Fashion-MNIST's clothes."""
    root: Path | None = None
    """Folder of Fashion-MNIST's four files, as in the source of that name."""
    glyph: int = Field(default=16, ge=1)
    """Side of a digit, in pixels."""
    speed: Annotated[tuple[float, float], AfterValidator(_rising)] = (1.0, 2.0)
    """Slowest and fastest digit, in pixels a frame."""
    clips: int = Field(default=10_000, ge=1)
    """Training clips; of the test part there are a tenth as many, at least 100."""

    def open(self, split: Split = "train") -> MovingClips:
        """The clips of one part; InputError when a digit has no room, or as Fashion-MNIST's `open`."""
        if self.glyph >= self.size:
            raise InputError(
                f"`data.glyph` {self.glyph} has no room to move in `data.size` {self.size}; make it smaller"
            )
        if self.glyphs == "digits":
            source = Digits(size=self.glyph).open(split)
        else:
            source = FashionMNIST(size=self.glyph, root=self.root).open(split)
        self.check_classes(
            source.names if self.digits == 1 else (), f"moving-digits with `data.digits` {self.digits}"
        )
        return MovingClips(self, source, split)


class MovingClips(Clips):
    """The clips of one part. Clip k depends on k and the part only, not on how many there are or how long."""

    _config: MovingDigits

    def __init__(self, config: MovingDigits, glyphs: Arrays, split: Split):
        super().__init__(config)
        self._glyphs = glyphs.images[:, 0].float()  # (number of them, g, g)
        count = config.clips if split == "train" else max(100, config.clips // 10)
        # Row k of the stream is clip k's, whatever the count. Angles point from the columns' axis to the rows'.
        uniform = generator(SEEDS[split], 0, "augment").random((count, MOST, 5))[:, : config.digits]
        which, row, column, angle, speed = torch.from_numpy(uniform).unbind(-1)
        self._which = (which * len(self._glyphs)).long()  # (N, D)
        slowest, fastest = config.speed
        self._start = torch.stack([row, column], -1) * self._room  # (N, D, 2)
        angle, speed = 2 * math.pi * angle, slowest + (fastest - slowest) * speed
        velocity = torch.stack([angle.sin(), angle.cos()], -1) * speed[..., None]
        after = self._start + velocity
        self._velocity = torch.where((after < 0) | (after > self._room), -velocity, velocity)
        assert glyphs.labels is not None  # both sources have labels
        classes = glyphs.labels[self._which]  # (N, D)
        self.labels = classes[:, 0] if config.digits == 1 else None
        self.names = glyphs.names if config.digits == 1 else ()
        words = NUMBERS if config.glyphs == "digits" else tuple(name.lower() for name in glyphs.names)
        self.captions: Sequence[str] | None = [
            caption([words[label] for label in row], velocity)
            for row, velocity in zip(classes.tolist(), self._velocity.tolist(), strict=True)
        ]

    @property
    def _room(self) -> int:
        return self._config.size - self._config.glyph

    def __len__(self) -> int:
        return len(self._which)

    def clip(self, index: int, draw: np.random.Generator | None = None) -> Tensor:
        """Clip `index`, uint8 (C, F, size, size). It has no other start to draw: `draw` is not used."""
        config = self._config
        drawn = draw_at(self._glyphs[self._which[index]], self._corners(index), config.size)
        return drawn.amax(0).round().byte().expand(config.channels, -1, -1, -1)

    def trajectory(self, index: int) -> Tensor:
        """The true centroids of clip `index`'s digits, row and column, in pixels: (D, F, 2)."""
        return self._corners(index) + centroid(self._glyphs[self._which[index]])[:, None]

    def _corners(self, index: int) -> Tensor:
        time = torch.arange(self._config.frames, dtype=torch.float64)[:, None]
        path = self._start[index][:, None] + time * self._velocity[index][:, None]  # (D, F, 2)
        return fold(path, self._room).float()


def caption(words: Sequence[str], velocities: Sequence[Sequence[float]]) -> str:
    """What is seen: "a seven moves up and to the right", "a three and an eight"; velocities (D, 2), row and column."""
    named = " and ".join(f"an {word}" if word[0] in "aei" else f"a {word}" for word in words)
    if len(words) > 1:
        return named
    down, right = velocities[0]
    return f"{named} moves {DIRECTIONS[round(math.atan2(down, right) / (math.pi / 4)) % 8]}"
