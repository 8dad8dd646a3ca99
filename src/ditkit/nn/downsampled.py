"""Self-attention on a grid of tokens, whole or at a quarter of the cost by downsampling (U-DiT: Tian et al.,
2024, sections 3.2 to 3.4).

Token downsampling: a depthwise convolution spreads what each token knows, then the tokens are split into four
sub-maps by the parity of row and column. Each attends within itself only, with the same weights and positions;
nothing is dropped. Four times (N/4)² products instead of N².

Key/value downsampling: all tokens ask, squares of four tokens answer as one. It costs the same.

With cosine attention (Swin v2: Liu et al., 2022) the logits are cosines times exp(a learned scale), at
most 100.
"""

import math

import torch
from torch import Tensor, nn

from ditkit.kernels.attention import attend
from ditkit.kernels.rotation import rotate
from ditkit.nn.attention import check_heads
from ditkit.nn.blocks import Modulation, modulated_norm
from ditkit.nn.convolutions import DepthwiseConv
from ditkit.nn.linear import dense
from ditkit.nn.positions import Axis
from ditkit.nn.registries import Downsampler
from ditkit.nn.rotary import rotary_positions

Positions = tuple[Tensor, Tensor]  # of the queries and of the keys

START_SCALE, MOST_SCALE = math.log(10.0), math.log(100.0)


def split_parity(x: Tensor) -> Tensor:
    """Four sub-maps: (B, H, W, D) -> (4B, H/2 · W/2, D), of image b those of (even, even), (even, odd), ...

    One copy, made while the map is narrow, before queries, keys and values are.
    """
    x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, h, 2, w, 2, D)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3, 4).flatten(0, 2)


def merge_parity(x: Tensor, height: int, width: int) -> Tensor:
    """Back, with the heads' channels together: (4B, heads, H/2 · W/2, d) -> (B, H, W, heads · d). One copy."""
    x = x.unflatten(2, (height // 2, width // 2)).unflatten(0, (-1, 2, 2))  # (B, 2, 2, heads, h, w, d)
    return x.permute(0, 4, 1, 5, 2, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2)


def unit(x: Tensor) -> Tensor:
    """Each vector (..., d) to length 1."""
    return x * x.square().sum(-1, keepdim=True).clamp(min=1e-24).rsqrt()


class _Attention(nn.Module):
    """What all of them share: heads, how queries meet keys, and the last projection."""

    halves = 1
    """How often the grid is halved within."""

    def __init__(self, width: int, heads: int, cosine: bool):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.proj = dense(width, width)
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), START_SCALE)) if cosine else None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Positions | None) -> Tensor:
        """(B, L, heads, d) and twice (B, M, heads, d) -> (B, heads, L, d).

        Angles and lengths are float32, under autocast too: bf16 knows a logit of 100 to 0.25.
        """
        if positions is not None:
            q, k = rotate(q, positions[0]), rotate(k, positions[1])
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if self.logit_scale is None:
            return attend(q.to(v.dtype), k.to(v.dtype), v)
        q = unit(q.float()) * self.logit_scale.clamp(max=MOST_SCALE).exp()
        return attend(q.to(v.dtype), unit(k.float()).to(v.dtype), v, scale=1.0)


class GridAttention(_Attention):
    """Every token to every token: (B, H, W, width) -> (B, H, W, width).

    `positions`, where there are some, turn queries and keys (`nn/rotary.py`). One projection gives queries, keys
    and values, in that order, each head-major.
    """

    halves = 0

    def __init__(self, width: int, heads: int, downsampler: Downsampler, cosine: bool):
        super().__init__(width, heads, cosine)
        self.qkv = dense(width, 3 * width)

    @staticmethod
    def positions(height: int, width: int, dim: int) -> Positions:
        """Of queries and keys with heads of `dim` channels, for a grid of that size."""
        table = rotary_positions((Axis(height), Axis(width)), dim)
        return table, table

    def queries_keys_values(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(B, L, width) -> three of (B, L, heads, d)."""
        return self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).unbind(2)

    def forward(self, x: Tensor, positions: Positions | None) -> Tensor:
        q, k, v = self.queries_keys_values(x.flatten(1, 2))
        return self.proj(self.attend(q, k, v, positions).transpose(1, 2).reshape(x.shape))


class Spread(nn.Module):
    """Before tokens part, each takes up what is around it: (B, H, W, D) -> (B, H, W, D)."""

    def __init__(self, width: int, downsampler: Downsampler):
        super().__init__()
        self.conv = None if downsampler == "none" else DepthwiseConv(width, 5)
        self.shortcut = downsampler == "depthwise_shortcut"

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return x
        around = self.conv(x)
        return around + x if self.shortcut else around


class TokenDownsampledAttention(GridAttention):
    """Every token to those of its own parity: (B, H, W, width) -> (B, H, W, width); H and W even."""

    halves = 1

    def __init__(self, width: int, heads: int, downsampler: Downsampler, cosine: bool):
        super().__init__(width, heads, downsampler, cosine)
        self.spread = Spread(width, downsampler)

    @staticmethod
    def positions(height: int, width: int, dim: int) -> Positions:
        return GridAttention.positions(height // 2, width // 2, dim)

    def forward(self, x: Tensor, positions: Positions | None) -> Tensor:
        q, k, v = self.queries_keys_values(split_parity(self.spread(x)))
        return self.proj(merge_parity(self.attend(q, k, v, positions), *x.shape[1:3]))


class KeyValueDownsampledAttention(_Attention):
    """Every token to squares of 2 × 2 tokens: (B, H, W, width) -> (B, H, W, width); H and W even.

    The paper names this variant and does not write it out. Here a key and a value are made of the 4 · width
    channels of a square, spread as in the other variant, and stand in its middle: with that, both variants
    have the same multiply-adds, as in the paper's table.
    """

    def __init__(self, width: int, heads: int, downsampler: Downsampler, cosine: bool):
        super().__init__(width, heads, cosine)
        self.spread = Spread(width, downsampler)
        self.q = dense(width, width)
        self.kv = dense(4 * width, 2 * width)

    @staticmethod
    def positions(height: int, width: int, dim: int) -> Positions:
        squares = (Axis(height // 2, 0.5, 2.0), Axis(width // 2, 0.5, 2.0))
        return rotary_positions((Axis(height), Axis(width)), dim), rotary_positions(squares, dim)

    def forward(self, x: Tensor, positions: Positions | None) -> Tensor:
        q = self.q(x.flatten(1, 2)).unflatten(-1, (self.heads, -1))
        squares = (
            self.spread(x).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)
        )  # (B, h, w, 2, 2, D)
        k, v = self.kv(squares.flatten(3).flatten(1, 2)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return self.proj(self.attend(q, k, v, positions).transpose(1, 2).reshape(x.shape))


Attention = GridAttention | KeyValueDownsampledAttention


class GridBlock(nn.Module):
    """Attention, then the MLP, with adaLN-Zero: (B, H, W, D) and c (B, 1, 1, D) -> (B, H, W, D).

    As `AdaLNZeroBlock`, on a grid: its attention knows where tokens are. Starts as the identity.
    """

    def __init__(self, attention: Attention, mlp: nn.Module, width: int):
        super().__init__()
        self.attention = attention
        self.mlp = mlp
        self.modulation = Modulation(width, 6)

    def forward(self, x: Tensor, c: Tensor, positions: Positions | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)
        x = x + gate1 * self.attention(modulated_norm(x, shift1, scale1), positions)
        return x + gate2 * self.mlp(modulated_norm(x, shift2, scale2))
