"""Images and clips to tokens and back.

A token is one p × p patch of an image, or one pt × p × p tubelet of a clip (Arnab et al., "ViViT", 2021). Tokens are
in row-major order, those of a clip frame by frame. On the way out the channel is the fastest index of a token's
features, (frame, row, column, channel): DiT's order (Peebles & Xie, 2023), which its weights need. Positions are
added elsewhere.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.nn.convolutions import xavier_conv
from ditkit.nn.sizes import image_size, patch_sizes

STEM = 32
"""Channels that a convolutional stem adds to those of a state."""


class ConvolutionalStem(nn.Module):
    """The state and beside it what two 3 × 3 convolutions with SiLU make of it, pixel by pixel: (B, C, H, W) ->
    (B, C + 32, H, W), the frames of a clip (B, C, F, H, W) one by one (Xiao et al., "Early Convolutions Help Transformers See
    Better", 2021).

    Differs: of stride 1, since patches follow; and the state itself goes on, too, so that no noise level has to pass SiLU.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.first, self.second = xavier_conv(channels, STEM, 3), xavier_conv(STEM, STEM, 3)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x
        h = F.silu(self.second(F.silu(self.first(frames))))
        if x.ndim == 5:
            h = h.unflatten(0, (len(x), -1)).transpose(1, 2)
        return torch.cat([x, h], dim=1)


class PatchEmbed(nn.Module):
    """One linear map of each patch to a token: (B, C, H, W) -> (B, H/p · W/p, width); with a tubelet of pt frames
    (B, C, F, H, W) -> (B, F/pt, H/p · W/p, width).

    Weights have one name and one order with and without frames: an image's, reshaped, are those of a tubelet of 1.
    """

    def __init__(self, channels: int, patch: int, width: int, tubelet: int = 0):
        super().__init__()
        self.patch, self.tubelet = patch, tubelet
        sizes, conv = patch_sizes(patch, tubelet), nn.Conv3d if tubelet else nn.Conv2d
        self.proj: nn.Conv2d | nn.Conv3d = conv(channels, width, sizes, stride=sizes)  # type: ignore[arg-type]
        # Xavier as if it were the linear layer it is, not a convolution with a fan of C·p² by D·p².
        bound = math.sqrt(6 / (channels * math.prod(sizes) + width))
        nn.init.uniform_(self.proj.weight, -bound, bound)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]  # Conv2d's bias may be None; not here

    def grid(self, *size: int) -> tuple[int, ...]:
        """Patches along each axis, (h, w) or of a clip (f, h, w), of a state of that size; with a tubelet, an image
        is a clip of one frame. InputError when they do not divide it, or for frames without a tubelet."""
        if not self.tubelet:
            size = image_size(size)
        elif len(size) == 2:
            size = (1, *size)
        if self.tubelet and size[0] % self.tubelet:
            raise InputError(
                f"a clip of {_counted(size[0], 'frame')} is not divisible into tubelets of {self.tubelet}; change "
                f"`data.frames` to a multiple of {self.tubelet} or `backbone.tubelet`"
            )
        height, width = size[-2:]
        if height % self.patch or width % self.patch:
            raise InputError(
                f"a state of {height}x{width} is not divisible into patches of {self.patch}; change "
                f"`data.size` to a multiple of {self.patch} (times the codec's downsampling) or `backbone.patch`"
            )
        return tuple(n // p for n, p in zip(size, patch_sizes(self.patch, self.tubelet), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        if not self.tubelet:
            # Contiguous: the residual stream keeps these strides, and norms over strided tokens are slow.
            return self.proj(x).flatten(2).transpose(1, 2).contiguous()
        pixels = patchify(x, patch_sizes(self.patch, self.tubelet))  # (B, f, h, w, C·pt·p·p)
        return F.linear(pixels.flatten(2, 3), self.proj.weight.flatten(1), self.proj.bias)


def patchify(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """(B, C, *size) to patches of those sizes: (B, *grid, C · their pixels), the channel slowest, as a convolution's
    weights have it."""
    axes = len(sizes)
    for k, size in enumerate(sizes):
        x = x.unflatten(2 + 2 * k, (-1, size))  # (B, C, h, p, w, p)
    grid, inside = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    return x.permute(0, *grid, 1, *inside).flatten(1 + axes)


def unpatchify(tokens: Tensor, grid: Sequence[int], patch: int, tubelet: int = 0) -> Tensor:
    """Tokens (B, h·w, p·p·C) in a grid (h, w) to an image (B, C, h·p, w·p); with a tubelet (B, f, h·w, pt·p·p·C) in a
    grid (f, h, w) to a clip (B, C, f·pt, h·p, w·p)."""
    sizes, axes = patch_sizes(patch, tubelet), len(grid)
    x = tokens.reshape(len(tokens), *grid, *sizes, -1)  # (B, h, w, p, p, C)
    x = x.permute(0, -1, *(1 + k + side * axes for k in range(axes) for side in (0, 1)))
    return x.reshape(len(x), x.shape[1], *(n * p for n, p in zip(grid, sizes, strict=True)))


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
