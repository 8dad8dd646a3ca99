"""What a network is told besides the image: the time, the label, and where each token is."""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from ditkit.nn.linear import small_dense


def sinusoid(t: Tensor, dim: int = 256, max_period: float = 10_000.0) -> Tensor:
    """Cosines, then sines, of t · max_period^(-i / (dim/2)), i = 0 .. dim/2 - 1 (DiT's order).

    t of any shape (*S,) gives float32 (*S, dim). In float32 as the released weights were trained: at
    t = 999 the angles' rounding shows in the fifth digit.
    """
    half = dim // 2
    frequencies = (-math.log(max_period) / half * torch.arange(half, device=t.device)).exp()
    angles = t.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Time in [0, 1] (0 = data, 1 = noise) to a vector: (*S,) -> (*S, width).

    `scale` and `shift` say what clock the network reads: scale · t + shift. DiT reads the index
    0..999 of t = (i + 1)/1000, so (1000, -1); SiT reads 1 - t, so (-1, 1).
    """

    def __init__(
        self, width: int, scale: float, shift: float, period: float = 10_000.0, frequencies: int = 256
    ):
        super().__init__()
        self.scale, self.shift, self.period, self.frequencies = scale, shift, period, frequencies
        self.mlp = nn.Sequential(small_dense(frequencies, width), nn.SiLU(), small_dense(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoid(self.scale * t + self.shift, self.frequencies, self.period))


class LabelEmbedding(nn.Embedding):
    """A vector per class and one more, the last row, for "unknown": (B,) -> (B, width)."""

    def __init__(self, classes: int, width: int):
        super().__init__(classes + 1, width)
        nn.init.normal_(self.weight, std=0.02)


class SideBySide(nn.ModuleList):
    """Several embeddings of the same thing, one after another in one vector: (B,) -> (B, sum of widths)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([embedding(x) for embedding in self], dim=-1)


@lru_cache(maxsize=16)
def _sincos_table(height: int, width: int, dim: int) -> Tensor:
    def count(n: int) -> Tensor:  # on the CPU whatever the default device: the table is kept
        return torch.arange(n, dtype=torch.float64, device="cpu")

    omega = 10_000.0 ** (-count(dim // 4) / (dim // 4))
    rows = count(height)[:, None] * omega  # (h, D/4)
    columns = count(width)[:, None] * omega  # (w, D/4)
    column_half = torch.cat([columns.sin(), columns.cos()], dim=1).expand(height, -1, -1)
    row_half = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, width, -1)
    return torch.cat([column_half, row_half], dim=-1).flatten(0, 1).float()  # (h·w, D)


def sincos_positions(height: int, width: int, dim: int) -> Tensor:
    """Fixed positions of a height × width grid of tokens, float32 (h·w, dim); dim divisible by 4.

    The first half of the channels encodes the column, the second the row, each as sines, then
    cosines (what MAE's code does, under names that say the opposite; DiT's weights rely on it).
    """
    if dim % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, not {dim}")
    return _sincos_table(height, width, dim)
