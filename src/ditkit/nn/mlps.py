"""The MLPs of blocks. Each maps tokens (..., D) to tokens; `at` says where they are."""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.kernels.pointwise import tanh_gelu
from ditkit.nn.attention import ANY, Arrangement
from ditkit.nn.convolutions import zero_depthwise
from ditkit.nn.linear import dense
from ditkit.nn.parts import MlpKind

MULTIPLE = 8
"""Widths of gated hidden layers are multiples of it, which products in bf16 need to be fast."""


class TanhGelu(nn.Module):
    """GELU in its tanh form."""

    def forward(self, x: Tensor) -> Tensor:
        return tanh_gelu(x)


class Mlp(nn.Sequential):
    """Linear, GELU (tanh form), Linear; the hidden layer is `ratio` times as wide."""

    def __init__(self, width: int, ratio: float):
        hidden = int(width * ratio)
        super().__init__(dense(width, hidden), TanhGelu(), dense(hidden, width))

    def forward(self, x: Tensor, at: Arrangement = ANY) -> Tensor:
        return super().forward(x)


class GatedMlp(nn.Module):
    """(SiLU(x W + a) · (x V + b)) U + c (SwiGLU: Shazeer, "GLU Variants Improve Transformer", 2020, equation 6, with biases).

    The hidden layer is 2/3 as wide as that of `Mlp`, to the next multiple of 8, so that both have as many parameters.
    """

    def __init__(self, width: int, ratio: float):
        super().__init__()
        hidden = MULTIPLE * max(1, round(2 / 3 * width * ratio / MULTIPLE))
        self.into, self.out = dense(width, 2 * hidden), dense(hidden, width)

    def forward(self, x: Tensor, at: Arrangement = ANY) -> Tensor:
        gate, value = self.into(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class ConvolvedMlp(Mlp):
    """`Mlp` whose hidden layer h becomes h + K * h, K a 3 × 3 kernel for each channel on the grid of tokens (as in U-DiT: Tian et
    al., 2024, section 3.4). K starts at zero, so it starts as `Mlp`, whose weights have the same names."""

    def __init__(self, width: int, ratio: float):
        super().__init__(width, ratio)
        self.around = zero_depthwise(int(width * ratio), 3)

    def forward(self, x: Tensor, at: Arrangement = ANY) -> Tensor:
        h = self[1](self[0](x))
        return self[2](h + on_grid(self.around, h, at.grid))


def on_grid(function: Callable[[Tensor], Tensor], h: Tensor, grid: tuple[int, ...]) -> Tensor:
    """A function of maps (N, H, W, C), of tokens (..., L, C) the first of which fill a grid (frames, H, W), frame by frame; zeros
    for the tokens behind them. InputError where there is no grid."""
    if not grid:
        raise InputError(
            "`backbone.mlp` depthwise convolves the grid of all tokens: none can be left out; take gelu or swiglu"
        )
    own = h[..., : math.prod(grid), :]
    out = function(own.reshape(-1, *grid[1:], h.shape[-1])).view(own.shape)
    return F.pad(out, (0, 0, 0, h.shape[-2] - own.shape[-2]))


MLPS: dict[MlpKind, type[Mlp] | type[GatedMlp]] = {"gelu": Mlp, "swiglu": GatedMlp, "depthwise": ConvolvedMlp}
