"""Rotation of pairs of channels."""

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """x (B, L, heads, d) with every pair of channels turned by its angle. float32.

    `positions` (2, L, d/2), or (2, B, L, d/2) where rows differ.
    """
    cos, sin = positions.unsqueeze(-2)  # (L, 1, d/2)
    pairs = x.float().unflatten(-1, (-1, 2))
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # As complex numbers: half the time of what is written out, which the compiler needs.
        return torch.view_as_real(
            torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)
        ).flatten(-2)
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
