"""Rotary positions on a grid: queries and keys are turned by angles that grow with row and column, so that
their products depend on where they are relative to each other (RoFormer: Su et al., 2021; in two
dimensions as U-DiT has it: Tian et al., 2024).

Adjacent channels are a pair, and the pairs of a head take turns: pair 2j is turned by column · f_j, pair
2j + 1 by row · f_j, with f_j = 10000^(-4j/d), j = 0 .. d/4 - 1.
"""

from functools import lru_cache

import torch
from torch import Tensor

from ditkit.errors import InputError


def check_rotary(width: int, heads: int) -> None:
    """InputError unless the channels of a head are whole pairs for rows and for columns."""
    if width % (4 * heads):
        raise InputError(
            f"rotary positions need heads whose channels are a multiple of 4, not {width} channels in {heads} "
            f"heads; use a width that is a multiple of {4 * heads}, other heads, or --backbone.no-rotary"
        )


@lru_cache(maxsize=32)
def rotary_positions(height: int, width: int, dim: int, start: float = 0.0, step: float = 1.0) -> Tensor:
    """Cosines and sines of a height × width grid's angles, row-major: float32 (2, h·w, dim/2).

    Rows and columns are start, start + step, ...: the tokens of a coarser grid keep their places on the
    finer one. `dim`, the channels of a head, is divisible by 4.
    """

    def count(n: int) -> Tensor:  # on the CPU whatever the default device: the table is kept
        return torch.arange(n, dtype=torch.float64, device="cpu")

    frequencies = 10_000.0 ** (-4 * count(dim // 4) / dim)
    rows = ((start + step * count(height))[:, None] * frequencies).expand(width, -1, -1).transpose(0, 1)
    columns = ((start + step * count(width))[:, None] * frequencies).expand(height, -1, -1)
    angles = torch.stack([columns, rows], dim=-1).flatten(2).flatten(0, 1)  # (h·w, dim/2)
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """x (B, L, heads, d) with every pair of channels turned by its angle; positions (2, L, d/2). float32."""
    cos, sin = positions[:, :, None]  # (L, 1, d/2)
    pairs = x.float().unflatten(-1, (-1, 2))
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # As complex numbers: half the time of what is written out, which the compiler needs.
        return torch.view_as_real(
            torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)
        ).flatten(-2)
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
