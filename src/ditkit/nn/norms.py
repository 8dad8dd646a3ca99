"""Norms of tokens, without parameters, and of queries and keys."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.nn.parts import Norm

NORM_EPS = 1e-6


def norm(x: Tensor) -> Tensor:
    """Layer norm without parameters of its own."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the channels (Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019), without
    parameters."""
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS)


NORMS: dict[Norm, Callable[[Tensor], Tensor]] = {"layer": norm, "rms": rms_norm}


class HeadNorm(nn.Module):
    """RMS norm of each head's queries or keys (..., d), times a learned scale of each channel that all heads share and that
    starts at 1; float32 (Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters", 2023; Esser et al., 2024)."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x.float()) * self.scale
