"""Convolutional parts: residual blocks with a condition, and changes of resolution.

Maps are (B, C, H, W) or, where it says so, a grid of tokens (B, H, W, C): the same memory as a channels-last
map, so that going from one to the other moves nothing.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.kernels.depthwise import depthwise
from ditkit.kernels.maps import on_planes
from ditkit.nn.linear import dense
from ditkit.nn.sizes import GROUPS


def zero_conv(fan_in: int, fan_out: int) -> nn.Conv2d:
    """A 3 × 3 convolution that starts at zero: what it adds is absent until it is learned."""
    layer = nn.Conv2d(fan_in, fan_out, 3, padding=1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # Conv2d's bias may be None; not here
    return layer


def xavier_conv(fan_in: int, fan_out: int, kernel: int) -> nn.Conv2d:
    """Any odd kernel, at the same resolution; Xavier-uniform weight, zero bias."""
    return xavier_init(nn.Conv2d(fan_in, fan_out, kernel, padding=kernel // 2))


def xavier_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Xavier-uniform weight, zero bias."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def embedding_conv(channels: int, width: int, kernel: int) -> nn.Conv2d:
    """The first layer: Xavier as if it were the linear map of a patch that it is, zero bias."""
    layer = nn.Conv2d(channels, width, kernel, padding=kernel // 2)
    bound = math.sqrt(6 / (channels * kernel**2 + width))
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class DepthwiseConv(nn.Conv2d):
    """Each channel for itself, any odd kernel: a grid of tokens (B, H, W, C) to the same. Starts as `xavier_conv`."""

    def __init__(self, channels: int, kernel: int):
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)
        xavier_init(self)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise(x, self.weight, self.bias)


def zero_depthwise(channels: int, kernel: int) -> DepthwiseConv:
    """One that starts at zero: what it adds is absent until it is learned."""
    layer = DepthwiseConv(channels, kernel)
    nn.init.zeros_(layer.weight)
    return layer


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut; the condition scales and shifts what lies between
    (ADM's block: Dhariwal & Nichol, 2021, section 3.1).

    (B, C, H, W) and c (B, D) -> (B, C', H, W). Starts as the shortcut alone.
    """

    def __init__(self, fan_in: int, fan_out: int, width: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, fan_in)
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, padding=1)
        self.modulation = dense(width, 2 * fan_out)
        self.norm2 = nn.GroupNorm(GROUPS, fan_out)
        self.conv2 = zero_conv(fan_out, fan_out)
        self.shortcut = nn.Identity() if fan_in == fan_out else nn.Conv2d(fan_in, fan_out, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(F.silu(c))[..., None, None].chunk(2, dim=1)  # (B, C', 1, 1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.shortcut(x) + self.conv2(F.silu(h))


class Downsample(nn.Conv2d):
    """Half the resolution by a convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2, padding=1)


class Upsample(nn.Conv2d):
    """Twice the resolution: every pixel four times, then a convolution."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Unshuffle(nn.Conv2d):
    """Half the resolution and twice the channels: a convolution to half of them, then each 2 × 2 pixels
    become channels, (channel, row, column). On tokens; no bias (Restormer: Zamir et al., 2022)."""

    def __init__(self, channels: int):
        super().__init__(channels, channels // 2, 3, padding=1, bias=False)
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return on_planes(lambda m: F.pixel_unshuffle(nn.Conv2d.forward(self, m), 2), x)


class Shuffle(nn.Conv2d):
    """Twice the resolution and half the channels: a convolution to twice of them, then channels become
    pixels. On tokens; no bias."""

    def __init__(self, channels: int):
        super().__init__(channels, 2 * channels, 3, padding=1, bias=False)
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return on_planes(lambda m: F.pixel_shuffle(nn.Conv2d.forward(self, m), 2), x)
