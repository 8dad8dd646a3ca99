"""Images to tokens and back.

A token is one p × p patch, tokens are in row-major order. On the way out the channel is the fastest
index of a token's features, (row, column, channel): DiT's order (Peebles & Xie, 2023), which its
weights need. Positions are added elsewhere.
"""

import math

from torch import Tensor, nn

from ditkit.errors import InputError


class PatchEmbed(nn.Module):
    """One linear map of each p × p patch to a token: (B, C, H, W) -> (B, H/p · W/p, width)."""

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        # Xavier as if it were the linear layer it is, not a convolution with a fan of C·p² by D·p².
        bound = math.sqrt(6 / (channels * patch**2 + width))
        nn.init.uniform_(self.proj.weight, -bound, bound)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]  # Conv2d's bias may be None; not here

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches per column and row of an image of that size; InputError when it does not divide."""
        if height % self.patch or width % self.patch:
            raise InputError(
                f"a state of {height}x{width} is not divisible into patches of {self.patch}; change "
                f"--data.size to a multiple of {self.patch} (times the codec's downsampling) or --backbone.patch"
            )
        return height // self.patch, width // self.patch

    def forward(self, x: Tensor) -> Tensor:
        # Contiguous: the residual stream keeps these strides, and norms over strided tokens are slow.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Tokens (B, h·w, p·p·C) in a grid (h, w) to an image (B, C, h·p, w·p)."""
    x = tokens.unflatten(1, grid).unflatten(-1, (patch, patch, -1))  # (B, h, w, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
