"""Several resolutions of one image as one state (Gu et al., "Matryoshka Diffusion Models", ICLR 2024).

The highest level is what another codec makes of the image; each lower one is the average over squares of the level
above, of a clip of every frame or of every second, fourth, ... from the first. They are packed in channels (`ditkit.layout`). Around which codec, and which levels there are, follows from
the recipe: a network that works on several has `ratios`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ditkit.codecs.base import Codec
from ditkit.errors import InputError
from ditkit.layout import Layout, Pyramid, check_ratios, pack, packing, unpack
from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class PyramidCodec:
    """Images (B, C, H, W) to packed pyramids of the states of `base`, and back from any level."""

    def __init__(
        self,
        base: Codec,
        ratios: Sequence[int],
        scales: Sequence[float] = (),
        frame_ratios: Sequence[int] = (),
    ):
        """`ratios` of the levels' sides to the lowest's, highest first, and of their frames; `scales`: what each level is
        multiplied by. InputError where there is not one for each."""
        check_ratios(ratios)
        if scales and len(scales) != len(ratios):
            raise InputError(
                f"`codec.level_scale` has {len(scales)} numbers for {len(ratios)} levels; give one for each"
            )
        self.base, self.ratios, self.random = base, tuple(ratios), base.random
        self.scales = tuple(scales) or (1.0,) * len(ratios)
        self.frame_ratios = tuple(frame_ratios) or (1,) * len(ratios)
        self.channels = base.channels * sum(packing(ratios, self.frame_ratios))

    def layout(self, *size: int) -> Layout:
        if len(self.ratios) == 1:  # whose parts are those of the base codec's states
            return self.base.layout(*size)
        shape = self.base.layout(*size).shape
        return Pyramid.of(*shape, ratios=self.ratios, frame_ratios=self.frame_ratios)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Of noise, packed as the state is, the highest level's part is what the base codec draws with."""
        drawn = None if noise is None else unpack(noise, self.ratios, self.frame_ratios)[0]
        levels = [self.base.encode(images, drawn)]
        for high, low, more, fewer in zip(*_steps(self.ratios), *_steps(self.frame_ratios), strict=True):
            above = levels[-1]
            if above.ndim == 5:
                frames = above[:, :, :: more // fewer].transpose(1, 2)
                levels.append(
                    torch.nn.functional.avg_pool3d(frames, (1, high // low, high // low)).transpose(1, 2)
                )
            else:
                levels.append(torch.nn.functional.avg_pool2d(above, high // low))
        scaled = [scale * level for scale, level in zip(self.scales, levels, strict=True)]
        return pack(scaled, self.ratios, self.frame_ratios)

    def values(self, state: Tensor, level: int = 0) -> Tensor:
        """The images of a level, 0 the highest, each of its own size, as numbers."""
        return self.base.values(self._level(state, level))

    def decode(self, state: Tensor, level: int = 0) -> Tensor:
        """The same as uint8."""
        return self.base.decode(self._level(state, level))

    def _level(self, state: Tensor, level: int) -> Tensor:
        return unpack(state, self.ratios, self.frame_ratios)[level] / self.scales[level]

    def side_by_side(self, state: Tensor, numbers: bool = False) -> Tensor:
        """All levels of each image or clip, the lowest first, enlarged to the highest's size: (B, C, ..., H, levels · W),
        as `decode` has them or as numbers."""
        read = self.values if numbers else self.decode
        images = [read(state, level) for level in reversed(range(len(self.ratios)))]
        enlarged = []
        for image in images:
            for axis in range(2, image.ndim):
                image = image.repeat_interleave(images[-1].shape[axis] // image.shape[axis], axis)
            enlarged.append(image)
        return torch.cat(enlarged, dim=-1)

    def save(self, folder: Path) -> None:
        self.base.save(folder)


def _steps(ratios: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """The ratios of each level and of the one below it."""
    return ratios[:-1], ratios[1:]
