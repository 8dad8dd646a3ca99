"""Convolutional parts: residual blocks that are told the condition, and changes of resolution."""

import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.nn.linear import dense

GROUPS = 8


def zero_conv(fan_in: int, fan_out: int) -> nn.Conv2d:
    """A 3 × 3 convolution that starts at zero: what it adds is absent until it is learned."""
    layer = nn.Conv2d(fan_in, fan_out, 3, padding=1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # Conv2d's bias may be None; not here
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
