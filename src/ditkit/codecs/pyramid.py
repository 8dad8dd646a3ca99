"""Several resolutions of one image as one state (Gu et al., "Matryoshka Diffusion Models", ICLR 2024).

The highest level is what another codec makes of the image; each lower one is the average over squares of the level
above. They are packed in channels (`ditkit.layout`). Around which codec, and which levels there are, follows from
the recipe: a network that works on several has `ratios`.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ditkit.codecs.base import Codec
from ditkit.errors import InputError
from ditkit.layout import Pyramid, check_ratios, pack, unpack


class PyramidCodec:
    """Images uint8 (B, C, H, W) to packed pyramids of the states of `base`, and back from any level."""

    def __init__(self, base: Codec, ratios: Sequence[int], scales: Sequence[float] = ()):
        """`ratios` of the levels' sides to the lowest's, highest first; `scales`: what each level is multiplied by.
        InputError where there is not one for each."""
        check_ratios(ratios)
        if scales and len(scales) != len(ratios):
            raise InputError(
                f"--codec.level-scale has {len(scales)} numbers for {len(ratios)} levels; give one for each"
            )
        self.base, self.ratios, self.random = base, tuple(ratios), base.random
        self.scales = tuple(scales) or (1.0,) * len(ratios)
        self.channels = base.channels * sum(ratio**2 for ratio in ratios)

    def layout(self, *size: int) -> Pyramid:
        """InputError for clips: the levels are of one image."""
        if len(size) == 3:
            raise InputError(
                f"a clip of {size[0]} frames in several resolutions: levels are of images; take a backbone of one"
            )
        channels, height, width = self.base.layout(*size).shape
        return Pyramid.of(channels, height, width, self.ratios)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Of noise, packed as the state is, the highest level's part is what the base codec draws with."""
        drawn = None if noise is None else unpack(noise, self.ratios)[0]
        levels = [self.base.encode(images, drawn)]
        for high, low in pairwise(self.ratios):
            levels.append(F.avg_pool2d(levels[-1], high // low))
        return pack([scale * level for scale, level in zip(self.scales, levels, strict=True)], self.ratios)

    def decode(self, state: Tensor, level: int = 0) -> Tensor:
        """The images of a level, 0 the highest, each of its own size."""
        return self.base.decode(unpack(state, self.ratios)[level] / self.scales[level])

    def side_by_side(self, state: Tensor) -> Tensor:
        """All levels of each image, the lowest first, enlarged to the highest's size: (B, C, H, levels · W)."""
        images = [self.decode(state, level) for level in reversed(range(len(self.ratios)))]
        height, width = images[-1].shape[2:]
        enlarged = [
            image.repeat_interleave(height // image.shape[2], 2).repeat_interleave(width // image.shape[3], 3)
            for image in images
        ]
        return torch.cat(enlarged, dim=3)

    def save(self, folder: Path) -> None:
        self.base.save(folder)
