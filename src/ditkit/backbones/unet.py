"""A plain convolutional U-Net: what diffusion models were before transformers (Ho et al., 2020;
Dhariwal & Nichol, 2021), without attention.

Here to be compared with: the DiT paper's point is that its inductive bias is not needed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.backbones.base import BodyShape, Conditions, Plain
from ditkit.backbones.sections.unet import UNetConfig
from ditkit.kernels.maps import channels_last
from ditkit.nn.around import Around, Tokens, alone
from ditkit.nn.convolutions import Downsample, ResidualBlock, Upsample, zero_conv
from ditkit.nn.embeddings import LabelEmbedding, TimeEmbedding
from ditkit.nn.sizes import GROUPS, check_halvings


class UNet(Plain):
    """(x (B, C, H, W), t (B,), cond) -> (B, C', H, W); H, W multiples of 2^(levels - 1)."""

    def __init__(self, config: UNetConfig, channels: int, classes: int, out_channels: int):
        super().__init__()
        condition_width = 4 * config.width
        self.classes = classes
        self.time = TimeEmbedding(condition_width, config.time_scale, config.time_shift)
        self.label = LabelEmbedding(classes, condition_width) if classes else None
        self.levels = len(config.multipliers)
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)

        here, skips = widths[0], [widths[0]]  # channels now, and of every map kept for the way up
        down, up = [], []
        self.downsamples, self.upsamples = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            if level:
                self.downsamples.append(Downsample(here))
                skips.append(here)
            for _ in range(config.depth):
                down.append(ResidualBlock(here, width, condition_width))
                here = width
                skips.append(here)
        self.body_shape = BodyShape(
            input_channels=widths[0], output_channels=widths[0], condition_width=condition_width
        )
        middle = ResidualBlock(here, here, condition_width)
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(config.depth + 1):
                up.append(ResidualBlock(here + skips.pop(), width, condition_width))
                here = width
            if level:
                self.upsamples.append(Upsample(here))
        self.blocks = nn.ModuleList([*down, middle, *up])
        self.depth = config.depth
        self.norm = nn.GroupNorm(GROUPS, here)
        self.final = zero_conv(here, out_channels)

    def embed(self, x: Tensor) -> Tensor:
        """(B, width, H, W), channels last: the layout that convolutions are quickest in."""
        self.check_size(*x.shape[2:])
        return self.stem(channels_last(x))

    def body(self, h: Tensor, c: Tensor, conditions: Conditions, around: Around = alone) -> Tensor:
        blocks, skips, at = enumerate(self.blocks), [h], Tokens(c)

        def run_next(h: Tensor) -> Tensor:
            k, block = next(blocks)
            return around(k, lambda h, at: block(h, at.c), h, at)

        for level in range(self.levels):
            if level:
                h = self.downsamples[level - 1](h)
                skips.append(h)
            for _ in range(self.depth):
                h = run_next(h)
                skips.append(h)
        h = run_next(h)
        for level in range(self.levels):
            for _ in range(self.depth + 1):
                h = run_next(torch.cat([h, skips.pop()], dim=1))
            if level < self.levels - 1:
                h = self.upsamples[level](h)
        return h

    def head(self, h: Tensor, c: Tensor, size: torch.Size) -> Tensor:
        return self.final(F.silu(self.norm(h)))

    def check_size(self, *size: int) -> None:
        check_halvings(size, self.levels - 1, "give fewer `backbone.multipliers`")
