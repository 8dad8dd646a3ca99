"""Transformer blocks, one for each way of telling a network its condition (DiT paper, section 3.2).

A block maps tokens (B, L, D) and a condition to tokens. The condition of the adaptive-norm blocks is
one vector per image, (B, D), or one per token, (B, L, D), the sum of the time's and the label's.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.nn.attention import SelfAttention
from ditkit.nn.linear import dense, zero_dense

NORM_EPS = 1e-6


class TanhGelu(nn.Module):
    """x (1 + tanh u) / 2 with u = sqrt(2/pi) (x + 0.044715 x³).

    Compiled, it is written as x · sigmoid(2u), the same function: inductor's vectorised sigmoid takes
    half the time of its tanh. Eager, torch's one kernel is faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return F.gelu(x, approximate="tanh")
        y = x.float()
        u = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
        return (y * torch.sigmoid(2 * u)).to(x.dtype)


class Mlp(nn.Sequential):
    """Linear, GELU (tanh form), Linear; the hidden layer is `ratio` times as wide."""

    def __init__(self, width: int, ratio: float):
        hidden = int(width * ratio)
        super().__init__(dense(width, hidden), TanhGelu(), dense(hidden, width))


class Modulation(nn.Module):
    """The condition's `n` vectors per token: (B, D) -> n of (B, 1, D); (B, L, D) -> n of (B, L, D)."""

    def __init__(self, width: int, n: int):
        super().__init__()
        self.n = n
        self.linear = zero_dense(width, n * width)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        if c.ndim == 2:
            c = c[:, None]
        return self.linear(F.silu(c)).chunk(self.n, dim=-1)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters of its own, then x · (1 + scale) + shift."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class AdaLNZeroBlock(nn.Module):
    """adaLN-Zero: the condition sets shift, scale and gate of both halves; all start at zero.

    With zero gates every block starts as the identity (DiT paper, figure 3).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.mlp = Mlp(width, mlp_ratio)
        self.modulation = Modulation(width, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)
        x = x + gate1 * self.attention(modulated_norm(x, shift1, scale1))
        return x + gate2 * self.mlp(modulated_norm(x, shift2, scale2))


class AdaLNHead(nn.Module):
    """The last layer of the adaptive-norm networks: modulated norm, then a linear map that starts at 0."""

    def __init__(self, width: int, features: int):
        super().__init__()
        self.modulation = Modulation(width, 2)
        self.linear = zero_dense(width, features)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(c)
        return self.linear(modulated_norm(x, shift, scale))


# A conditioning is a block; the adaptive ones take the sum of the embeddings.
CONDITIONINGS: dict[str, type[nn.Module]] = {"adaln_zero": AdaLNZeroBlock}
