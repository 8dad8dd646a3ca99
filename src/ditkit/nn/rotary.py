"""Rotary positions on a grid: queries and keys are turned by angles that grow along its axes, so that their
products depend on where they are relative to each other (RoFormer: Su et al., 2021; in two dimensions as U-DiT
has it: Tian et al., 2024).

Adjacent channels are a pair, and the pairs of a head of d channels take turns among the A axes, column, row,
frame: pair i is turned by place · f_j, the place along axis i mod A, f_j = 10000^(-2 A j / d), j = i // A. Pairs
need not divide evenly among the axes: the first then have one more.
"""

from functools import lru_cache

import torch
from torch import Tensor

from ditkit.errors import InputError
from ditkit.nn.positions import Axis


def check_rotary(width: int, heads: int) -> None:
    """InputError unless the channels of a head are whole pairs for rows and for columns."""
    if width % (4 * heads):
        raise InputError(
            f"rotary positions need heads whose channels are a multiple of 4, not {width} channels in {heads} "
            f"heads; use a width that is a multiple of {4 * heads}, other heads, or `backbone.rotary` False"
        )


@lru_cache(maxsize=64)
def rotary_positions(axes: tuple[Axis, ...], dim: int) -> Tensor:
    """Cosines and sines of a grid's angles, row-major: float32 (2, L, dim/2), L the product of the axes' tokens.

    Axes in the grid's order, (frame,) row, column. That they start elsewhere or take other steps is how tokens of a
    coarser grid keep their places on the finer one. `dim`, the channels of a head, is even.
    """

    def count(n: int) -> Tensor:  # on the CPU whatever the default device: the table is kept
        return torch.arange(n, dtype=torch.float64, device="cpu")

    angles = torch.empty(*(axis.tokens for axis in axes), dim // 2, dtype=torch.float64, device="cpu")
    for k, axis in enumerate(reversed(axes)):
        own = angles[..., k :: len(axes)]
        frequencies = axis.base ** (-2 * len(axes) * count(own.shape[-1]) / dim)
        turned = (axis.start + axis.step * count(axis.tokens))[:, None] * frequencies
        own.copy_(turned.reshape(axis.tokens, *[1] * k, -1))
    angles = angles.flatten(0, -2)  # (L, dim/2)
    return torch.stack([angles.cos(), angles.sin()]).float()


def unturned(positions: Tensor, count: int) -> Tensor:
    """The table with `count` more tokens that have no place, and are not turned: (2, L, d/2) -> (2, L + count, d/2)."""
    cos = positions.new_ones(1, count, positions.shape[-1])
    return torch.cat([positions, torch.cat([cos, torch.zeros_like(cos)])], dim=1)
