"""DEIS (Zhang & Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2023): exact in the linear part of the ODE,
with a polynomial in t through the last estimates of the noise.

With r = sigma / alpha a step from t to s is x_s / alpha_s = x_t / alpha_t + integral of eps dr (equation 14). The first steps of a
trajectory, which know fewer estimates, are of lower order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ditkit.lazy import torch
from ditkit.sampling.solver import Step

if TYPE_CHECKING:
    from torch import Tensor

ORDER = 3
PLACES, WEIGHTS = np.polynomial.legendre.leggauss(8)
"""Gauss's rule on [-1, 1]."""


class Past(NamedTuple):
    """The estimates of the noise before, the newest first."""

    times: tuple[Tensor, ...]
    """() or (K,) each."""
    estimates: tuple[Tensor, ...]
    """(B, *S) each."""


def deis(step: Step, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
    """ODE for few evaluations, third order in t, one evaluation a step (DEIS, tAB3)."""
    answer, b = step.ask(x), step.denoise.path(step.s)
    times, estimates = ((), ()) if past is None else past
    times, estimates = (step.t, *times)[:ORDER], (answer.eps, *estimates)[:ORDER]
    moved = step.expand(b.alpha, x) * answer.x0 + step.expand(b.sigma, x) * answer.eps
    for k in range(1, len(times)):
        weight = b.alpha * _integral(step, k, times)
        moved = moved + step.expand(weight, x) * (estimates[k] - answer.eps)
    return moved, Past(times, estimates)


def _integral(step: Step, k: int, times: tuple[Tensor, ...]) -> Tensor:
    """Over dr from t to s of the polynomial that is 1 at the k-th of the times and 0 at the others."""
    middle, half = (step.t + step.s) / 2, (step.s - step.t) / 2
    total = torch.zeros_like(middle)
    for place, weight in zip(PLACES.tolist(), WEIGHTS.tolist(), strict=True):
        t = middle + place * half
        c = step.denoise.path(t)
        value = (c.d_sigma * c.alpha - c.sigma * c.d_alpha) / c.alpha**2  # dr/dt
        for j, other in enumerate(times):
            if j != k:
                value = value * (t - other) / (times[k] - other)
        total = total + weight * value
    return half * total
