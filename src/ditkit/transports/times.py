"""When a network is trained: laws of the times, and their shift with the size of the state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


TimeLaw = Callable[["Tensor"], "Tensor"]
"""A quantile function: u, uniform in (0, 1), to [0, 1]."""


def uniform(u: Tensor) -> Tensor:
    """All times alike."""
    return u


def logit_normal(u: Tensor, *, mean: float = 0.0, spread: Annotated[float, Field(gt=0)] = 1.0) -> Tensor:
    """Mostly in the middle: log(t / (1 - t)) is normal (Esser et al., 2024, section 3.1).

    A mean above 0 is nearer to the noise: Li & He (2025) train in pixels with -0.8 and 0.8, t counted from the noise.
    """
    return (mean + spread * torch.special.ndtri(u)).sigmoid()


TIME_LAWS: dict[str, Any] = {"uniform": uniform, "logit_normal": logit_normal}
"""Quantile functions; their keyword-only parameters are settings."""


def on_knots(t: Tensor, knots: int) -> Tensor:
    """Times in (0, 1] up to the next of 1/knots, ..., 1, each of which has an equal share of them."""
    return ((t * knots).floor() + 1).clamp(max=knots) / knots


def shifted_for_size(t: Tensor, shape: tuple[int, ...], base: float) -> Tensor:
    """Times of a state (C, *positions) with more or fewer positions than `base`: t -> s t / (1 + (s - 1) t), with s the
    root of how many times as many (Esser et al., 2024, equation 23)."""
    s = math.sqrt(math.prod(shape[1:]) / base)
    return s * t / (1 + (s - 1) * t)
