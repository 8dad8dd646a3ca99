"""Steps of the reverse SDE, whose marginals are the ODE's for any coefficient D(t) >= 0 (SiT, equation 4).

With t falling, dx = (velocity - D score) dt + sqrt(2 D) dW. D is chosen when sampling, by name
(`DIFFUSIONS`) or as a function; it has nothing to do with training. SiT's paper writes w = 2 D.

A step of size h takes h D / sigma of the estimated eps away, which must not be more than the sigma there
is: above that it overshoots. So there, and where D / sigma is without bounds (SBDM at t = 1, constant at
t = 0), the bound stands in for D. Any D >= 0 has the right marginals, and so has this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from ditkit.errors import InputError
from ditkit.lazy import torch
from ditkit.sampling.solver import Step
from ditkit.transports import Coeffs, Denoiser, Prediction

if TYPE_CHECKING:
    from torch import Tensor

Diffusion = Callable[["Tensor", Coeffs, float], "Tensor"]
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
    loss: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """norm V / sqrt(1 + (2 V)²): SBDM bounded by what its noise costs; the paper's w^{KL,eta}

    w^{KL,eta} = w^KL sqrt(L / (L + eta (w^KL)²)), L the velocity loss at t. The table of L the paper used is
    not public: without `loss` it is constant.
    """
    value, at = c.score_factor, torch.ones_like(t) if loss is None else loss(t)
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
    step: Step,
    x: Tensor,
    memory: None = None,
    *,
    diffusion: str | Diffusion = "sigma",
    diffusion_norm: float = 1.0,
    last_step: LastStep = "mean",
) -> tuple[Tensor, None]:
    """The SDE, first order, one evaluation a step; the last step takes the mean and adds no noise.

    Raises InputError: a coefficient that is unknown, negative or not finite at a time of the grid.
    """
    p = step.ask(x)
    if step.last and last_step != "none":
        return _end(step, p, x, last_step, diffusion, diffusion_norm), None
    d = coefficient(diffusion, diffusion_norm, step.denoise, step.t, step.t, step.s)
    size = -step.size(x)
    spread = (2 * step.expand(d, x) * size).sqrt()
    return x - size * drift(step, p, d, step.t, x) + spread * step.noise(x), None


def sde_heun(
    step: Step,
    x: Tensor,
    memory: None = None,
    *,
    diffusion: str | Diffusion = "sigma",
    diffusion_norm: float = 1.0,
    last_step: LastStep = "mean",
) -> tuple[Tensor, None]:
    """The SDE with Heun's drift: noise first, then a step of the trapezoidal rule; the last step as above.

    Two evaluations a step, one in the last. Raises as `euler_maruyama`.
    """
    if step.last and last_step != "none":
        return _end(step, step.ask(x), x, last_step, diffusion, diffusion_norm), None
    d, ahead = (
        coefficient(diffusion, diffusion_norm, step.denoise, time, step.t, step.s)
        for time in (step.t, step.s)
    )
    size = -step.size(x)
    x = x + (2 * step.expand(d, x) * size).sqrt() * step.noise(x)
    first = drift(step, step.ask(x), d, step.t, x)
    second = drift(step, step.ask(x - size * first, step.s, stage=1), ahead, step.s, x)
    return x - size * (first + second) / 2, None


def coefficient(
    diffusion: str | Diffusion, norm: float, denoise: Denoiser, t: Tensor, start: Tensor, end: Tensor
) -> Tensor:
    """D(t), of the shape of t, in a step from `start` to `end`; InputError if it is unknown or singular."""
    if isinstance(diffusion, str) and diffusion not in DIFFUSIONS:
        raise InputError(f"unknown `diffusion` {diffusion!r}; choose one of: {', '.join(DIFFUSIONS)}")
    c = denoise.path(t)
    value = (DIFFUSIONS[diffusion] if isinstance(diffusion, str) else diffusion)(t, c, norm)
    if not (value.isfinite() & (value >= 0)).all():
        name = diffusion if isinstance(diffusion, str) else getattr(diffusion, "__name__", "of your own")
        raise InputError(
            f"`diffusion` {name} is {value.flatten()[0]:g} at t = {t.flatten()[0]:g} of the grid; it must be a "
            "finite number, 0 or more: bound it there, or end the grid before it"
        )
    return torch.minimum(value, c.sigma * denoise.path(start).sigma / (start - end))


def drift(step: Step, prediction: Prediction, d: Tensor, time: Tensor, x: Tensor) -> Tensor:
    """velocity - D score, with score = -eps / sigma; at sigma = 0 there is no noise to replace."""
    scale = step.denoise.path(time).sigma
    per_eps = torch.where(scale > 0, d / scale, 0.0)
    return prediction.velocity + step.expand(per_eps, x) * prediction.eps


def _end(
    step: Step, p: Prediction, x: Tensor, last_step: LastStep, diffusion: str | Diffusion, norm: float
) -> Tensor:
    """The step to the data: the SDE's mean, the estimate of x0 (Tweedie), or the ODE's step (Euler)."""
    if last_step == "tweedie":
        return p.x0
    if last_step == "euler":
        return x + step.size(x) * p.velocity
    d = coefficient(diffusion, norm, step.denoise, step.t, step.t, step.s)
    return x + step.size(x) * drift(step, p, d, step.t, x)
