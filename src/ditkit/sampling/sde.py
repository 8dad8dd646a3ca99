"""Solvers of the reverse SDE, whose marginals are the ODE's for any coefficient D(t) >= 0 (SiT, equation 4).

With t falling, dx = (velocity - D score) dt + sqrt(2 D) dW. D is chosen when sampling, by name
(`DIFFUSIONS`) or as a function; it has nothing to do with training. SiT's paper writes w = 2 D.

A step of size h takes h D / sigma of the estimated eps away, which must not be more than the sigma there
is: above that it overshoots. So there, and where D / sigma is without bounds (SBDM at t = 1, constant at
t = 0), the bound stands in for D. Any D >= 0 has the right marginals, and so has this one.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ditkit.errors import InputError
from ditkit.sampling.ode import rows
from ditkit.transports import Coeffs, Denoiser, Prediction

Diffusion = Callable[[Tensor, Coeffs, float], Tensor]
"""(t, the path at t, norm) -> D(t), all of t's shape, float64."""

LastStep = Literal["mean", "tweedie", "euler", "none"]


def constant(t: Tensor, c: Coeffs, norm: float) -> Tensor:
    """norm"""
    return torch.full_like(t, norm)


def sbdm(t: Tensor, c: Coeffs, norm: float) -> Tensor:
    """norm V, V the velocity's factor of the score: the score-based SDE's own; the paper's w^KL is 2 V."""
    return norm * c.score_factor


def sigma(t: Tensor, c: Coeffs, norm: float) -> Tensor:
    """norm sigma; the paper's w = sigma is norm 0.5"""
    return norm * c.sigma


def linear(t: Tensor, c: Coeffs, norm: float) -> Tensor:
    """norm t"""
    return norm * t


def decreasing(t: Tensor, c: Coeffs, norm: float) -> Tensor:
    """(1 - norm cos(pi t))² / 4: falls to 0 at the data"""
    return (1 - norm * (math.pi * t).cos()) ** 2 / 4


def increasing_decreasing(t: Tensor, c: Coeffs, norm: float) -> Tensor:
    """norm sin²(pi t): 0 at both ends; the paper's w = sin² is norm 0.5"""
    return norm * (math.pi * t).sin() ** 2


def kl_eta(
    t: Tensor,
    c: Coeffs,
    norm: float,
    eta: float = 1.0,
    loss: Callable[[Tensor], Tensor] = torch.ones_like,
) -> Tensor:
    """norm V / sqrt(1 + (2 V)²): SBDM bounded by what its noise costs; the paper's w^{KL,eta}

    w^{KL,eta} = w^KL sqrt(L / (L + eta (w^KL)²)), L the velocity loss at t. The table of L the paper used is
    not public: without `loss` it is constant.
    """
    value, at = c.score_factor, loss(t)
    return norm * value * (at / (at + eta * (2 * value) ** 2)).sqrt()


DIFFUSIONS: dict[str, Diffusion] = {
    "sigma": sigma,
    "linear": linear,
    "constant": constant,
    "decreasing": decreasing,
    "increasing_decreasing": increasing_decreasing,
    "sbdm": sbdm,
    "kl_eta": kl_eta,
}


def euler_maruyama(
    denoise: Denoiser,
    x: Tensor,
    grid: Tensor,
    cond: dict,
    *,
    noise: Callable[[Tensor], Tensor],
    diffusion: str | Diffusion = "sigma",
    diffusion_norm: float = 1.0,
    last_step: LastStep = "mean",
) -> Tensor:
    """The SDE, first order, one evaluation a step; the last step takes the mean and adds no noise.

    Raises InputError: a coefficient that is unknown, negative or not finite at a time of the grid.
    """
    last = len(grid) - 2
    for i, (t, s) in enumerate(pairwise(grid)):
        prediction = denoise(x, rows(t, x), cond)
        if i == last and last_step != "none":
            return _last(denoise, prediction, x, t, s, last_step, diffusion, diffusion_norm)
        d = coefficient(diffusion, diffusion_norm, denoise, t, t, s)
        step = denoise.expand(rows(t - s, x), x)
        x = (
            x
            - step * drift(denoise, prediction, d, t, x)
            + (2 * denoise.expand(rows(d, x), x) * step).sqrt() * noise(x)
        )
    return x


def sde_heun(
    denoise: Denoiser,
    x: Tensor,
    grid: Tensor,
    cond: dict,
    *,
    noise: Callable[[Tensor], Tensor],
    diffusion: str | Diffusion = "sigma",
    diffusion_norm: float = 1.0,
    last_step: LastStep = "mean",
) -> Tensor:
    """The SDE with Heun's drift: noise first, then a step of the trapezoidal rule; the last step as above.

    Two evaluations a step, one in the last. Raises as `euler_maruyama`.
    """
    last = len(grid) - 2
    for i, (t, s) in enumerate(pairwise(grid)):
        if i == last and last_step != "none":
            prediction = denoise(x, rows(t, x), cond)
            return _last(denoise, prediction, x, t, s, last_step, diffusion, diffusion_norm)
        d, ahead = (coefficient(diffusion, diffusion_norm, denoise, time, t, s) for time in (t, s))
        step = denoise.expand(rows(t - s, x), x)
        x = x + (2 * denoise.expand(rows(d, x), x) * step).sqrt() * noise(x)
        first = drift(denoise, denoise(x, rows(t, x), cond), d, t, x)
        second = drift(denoise, denoise(x - step * first, rows(s, x), cond), ahead, s, x)
        x = x - step * (first + second) / 2
    return x


def coefficient(
    diffusion: str | Diffusion, norm: float, denoise: Denoiser, t: Tensor, start: Tensor, end: Tensor
) -> Tensor:
    """D(t), of the shape of t, in a step from `start` to `end`; InputError if it is unknown or singular."""
    if isinstance(diffusion, str) and diffusion not in DIFFUSIONS:
        raise InputError(f"unknown --diffusion {diffusion!r}; choose one of: {', '.join(DIFFUSIONS)}")
    c = denoise.path(t)
    value = (DIFFUSIONS[diffusion] if isinstance(diffusion, str) else diffusion)(t, c, norm)
    if not (value.isfinite() & (value >= 0)).all():
        name = diffusion if isinstance(diffusion, str) else getattr(diffusion, "__name__", "of your own")
        raise InputError(
            f"--diffusion {name} is {value.flatten()[0]:g} at t = {t.flatten()[0]:g} of the grid; it must be a "
            "finite number, 0 or more: bound it there, or end the grid before it"
        )
    return torch.minimum(value, c.sigma * denoise.path(start).sigma / (start - end))


def drift(denoise: Denoiser, prediction: Prediction, d: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """velocity - D score, with score = -eps / sigma; at sigma = 0 there is no noise to replace."""
    scale = denoise.path(t).sigma
    per_eps = torch.where(scale > 0, d / scale, 0.0)
    return prediction.velocity + denoise.expand(rows(per_eps, x), x) * prediction.eps


def _last(denoise, prediction, x, t, s, last_step, diffusion, norm) -> Tensor:
    """The step to the data: the SDE's mean, the estimate of x0 (Tweedie), or the ODE's step (Euler)."""
    if last_step == "tweedie":
        return prediction.x0
    step = denoise.expand(rows(t - s, x), x)
    if last_step == "euler":
        return x - step * prediction.velocity
    d = coefficient(diffusion, norm, denoise, t, t, s)
    return x - step * drift(denoise, prediction, d, t, x)
