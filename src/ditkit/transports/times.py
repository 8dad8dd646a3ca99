"""When a network is trained: laws of the times, and their shift with the size of the state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


TimeLaw = Callable[["Tensor"], "Tensor"]
"""A quantile function: u, uniform in (0, 1), to [0, 1]."""


def uniform(u: Tensor) -> Tensor:
    """All times alike."""
    return u


def logit_normal(u: Tensor) -> Tensor:
    """Mostly in the middle: log(t / (1 - t)) is standard normal (Esser et al., 2024, m = 0, s = 1)."""
    return torch.special.ndtri(u).sigmoid()


TIME_LAWS: dict[str, TimeLaw] = {"uniform": uniform, "logit_normal": logit_normal}


def on_knots(t: Tensor, knots: int) -> Tensor:
    """Times in (0, 1] up to the next of 1/knots, ..., 1, each of which has an equal share of them."""
    return ((t * knots).floor() + 1).clamp(max=knots) / knots


def shifted_for_size(t: Tensor, shape: tuple[int, ...], base: float) -> Tensor:
    """Times of a state (C, *positions) with more or fewer positions than `base`: t -> s t / (1 + (s - 1) t), with s the
    root of how many times as many (Esser et al., 2024, equation 23)."""
    s = math.sqrt(math.prod(shape[1:]) / base)
    return s * t / (1 + (s - 1) * t)
