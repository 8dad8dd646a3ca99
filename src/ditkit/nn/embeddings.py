"""What a network reads besides the image: the time, the label, the size, and where each token is."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.nn.linear import small_dense, zero_dense
from ditkit.nn.positions import Axis


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


class ScalarEmbedding(nn.Module):
    """A number from 0 to 1 as a vector that starts at zero: (B,) -> (B, width). Read as SiT reads its time, unscaled."""

    frequencies = 256

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(small_dense(self.frequencies, width), nn.SiLU(), zero_dense(width, width))

    def forward(self, value: Tensor) -> Tensor:
        return self.mlp(sinusoid(value, self.frequencies))


class LabelEmbedding(nn.Embedding):
    """A vector per class and one more, the last row, for "unknown": (B,) -> (B, width)."""

    def __init__(self, classes: int, width: int):
        super().__init__(classes + 1, width)
        nn.init.normal_(self.weight, std=0.02)


class SideBySide(nn.ModuleList):
    """Several embeddings of the same thing, one after another in one vector: (B,) -> (B, sum of widths)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([embedding(x) for embedding in self], dim=-1)


class SizeEmbedding(nn.Module):
    """How many tokens there are along each of `axes` axes, a vector that starts at zero: (B, axes) -> (B, width).

    Read as log2 of the count, so that doubling is one step anywhere. As SDXL's condition on an image's size (Podell et
    al., 2023), but of the grid itself.

    Differs: the vector has unit size and a gain, so it grows by the learning rate a step and no faster. Of counts that
    hardly vary the two layers below are a bias whose every weight moves the same way: without the gain their output
    can move by `width` times as much, and a network of one size only was lost so (docs/log.md).
    """

    frequencies = 64

    def __init__(self, axes: int, width: int):
        super().__init__()
        first = small_dense(axes * self.frequencies, width)
        self.mlp = nn.Sequential(first, nn.SiLU(), small_dense(width, width))
        self.gain = nn.Parameter(torch.zeros(width))

    def forward(self, counts: Tensor) -> Tensor:
        vector = self.mlp(sinusoid(counts.log2(), self.frequencies).flatten(1))
        return F.rms_norm(vector.float(), vector.shape[-1:]) * self.gain


@lru_cache(maxsize=64)
def sincos_table(axes: tuple[Axis, ...], dim: int) -> Tensor:
    """Fixed positions of a grid of tokens: of axes (row, column) float32 (h·w, dim), of (frame, row, column)
    (f, h·w, dim); dim divisible by 4.

    The first half of the channels encodes the column, the second the row, each as sines, then cosines (what MAE's
    code does, under names that say the opposite; DiT's weights rely on it). To that a clip adds a sinusoid of the
    frame over all channels (Latte: Ma et al., 2024).

    Differs from Latte: less its value at frame 0, so that a clip of one frame is the image.
    """
    if dim % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, not {dim}")
    *frames, rows, columns = axes
    column_half = _sines(columns, dim // 2).expand(rows.tokens, -1, -1)
    row_half = _sines(rows, dim // 2)[:, None].expand(-1, columns.tokens, -1)
    table = torch.cat([column_half, row_half], dim=-1).flatten(0, 1)  # (h·w, D)
    for axis in frames:
        table = table + (_sines(axis, dim) - _sines(Axis(1), dim))[:, None]  # (f, h·w, D)
    return table.float()


def _sines(axis: Axis, dim: int) -> Tensor:
    """Sines, then cosines, of each place times base^(-2 j / dim), j = 0 .. dim/2 - 1: float64 (n, dim)."""

    def count(n: int) -> Tensor:  # on the CPU whatever the default device: the table is kept
        return torch.arange(n, dtype=torch.float64, device="cpu")

    omega = axis.base ** (-count(dim // 2) / (dim // 2))
    angles = (axis.start + axis.step * count(axis.tokens))[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_positions(height: int, width: int, dim: int) -> Tensor:
    """Those of a height × width grid as they are, float32 (h·w, dim): what the released networks have."""
    return sincos_table((Axis(height), Axis(width)), dim)
