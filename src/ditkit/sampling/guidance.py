"""Guidance: functions from a denoiser to a denoiser. Scale 1 is off, but for a classifier's, where 0 is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ditkit.layout import Cond, Layout
from ditkit.lazy import torch
from ditkit.transports import At, Denoiser, Prediction

if TYPE_CHECKING:
    from torch import Tensor


def cfg(
    denoise: Denoiser,
    null: Callable[[Cond], Cond],
    scale: float | Sequence[float],
    interval: tuple[float, float] = (0.0, 1.0),
    channels: int | None = None,
) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans, 2022): null + scale · (cond - null).

    One call of twice the rows; outside `interval` (in t; Kynkäänniemi et al., 2024) only the
    conditional rows run. The learned variance, where there is one, is the conditional rows'.

    `scale`: one, or one for each part of the state, such as the levels of a pyramid.
    `channels`: guide only so many of the first and leave the others conditional. 3 is what the released DiT
    and SiT code does with its 4 latent channels, by accident; for their published samples only.
    """
    if scale == 1:
        return denoise

    def guided(x_t: Tensor, t: Tensor, cond: Cond, at: At) -> Prediction:
        if not _inside(t, interval):
            return denoise(x_t, t, cond, at)
        by = scale if isinstance(scale, int | float) else denoise.expand(torch.tensor(scale)[None], x_t)
        both = {key: torch.cat([cond[key], empty]) for key, empty in null(cond).items()}
        p = denoise(torch.cat([x_t, x_t]), torch.cat([t, t]), both, replace(at, roles=("cond", "null")))
        n = len(x_t)
        own = Prediction(
            coeffs=type(p.coeffs)(*(value[:n] for value in p.coeffs)),
            x_t=x_t,
            x0=p.x0[:n],
            eps=p.eps[:n],
            var=None if p.var is None else p.var[:n],
        )
        return _away(p.x0[n:], p.eps[n:], own, by, channels)

    return replace(denoise, predict=guided)


def autoguidance(
    denoise: Denoiser, weak: Denoiser, scale: float, interval: tuple[float, float] = (0.0, 1.0)
) -> Denoiser:
    """weak + scale · (denoise - weak), both with the condition (Karras et al., 2024).

    `weak` is a worse model of the same data and path: smaller, or an earlier snapshot. It is evaluated inside
    `interval` only.
    """
    if scale == 1:
        return denoise

    def guided(x_t: Tensor, t: Tensor, cond: Cond, at: At) -> Prediction:
        own = denoise(x_t, t, cond, at)
        if not _inside(t, interval):
            return own
        worse = weak(x_t, t, cond, replace(at, roles=("weak",)))
        return _away(worse.x0, worse.eps, own, scale)

    return replace(denoise, predict=guided)


def without_condition(denoise: Denoiser, null: Callable[[Cond], Cond]) -> Denoiser:
    """The denoiser that sees no condition, whatever it is given."""

    def predict(x_t: Tensor, t: Tensor, cond: Cond, at: At) -> Prediction:
        return denoise(x_t, t, null(cond), at)

    return replace(denoise, predict=predict)


def classifier_guidance(
    denoise: Denoiser,
    log_prob: Callable[[Tensor, Tensor, Cond], Tensor],
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Denoiser:
    """score + scale · grad log p(y | x_t) (Dhariwal & Nichol, 2021); 0 is off, 1 is Bayes' rule.

    `log_prob` (x_t, t, cond) -> (B,), by a classifier of noisy states that autograd can follow. Pure noise
    (alpha = 0) says nothing of y and is left alone.
    """
    if scale == 0:
        return denoise

    def guided(x_t: Tensor, t: Tensor, cond: Cond, at: At) -> Prediction:
        p = denoise(x_t, t, cond, at)
        if not _inside(t, interval):
            return p
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_prob(x, t, cond).sum(), x)
        alpha, sigma = p.coeffs.alpha, p.coeffs.sigma
        step = scale * torch.where(alpha > 0, sigma, 0.0) * gradient  # eps = -sigma · score
        x0 = p.x0 + step * torch.where(alpha > 0, sigma / alpha, 0.0)  # of the same x_t
        return p._replace(x0=x0, eps=p.eps - step)

    return replace(denoise, predict=guided)


# Of a state's sizes, the quantile to which they are divided down where it is above 1, and the most it may be.
THRESHOLDS = {"clip": None, "dynamic": (0.995, 100.0), "dynamic_if": (0.95, 1.5)}


def threshold(denoise: Denoiser, name: str) -> Denoiser:
    """x0 kept between -1 and 1, where pixels are (Saharia et al., 2022, section 2.3), in each part of the state by
    itself; eps is what then explains x_t. `name` of `THRESHOLDS`."""

    def bounded(x_t: Tensor, t: Tensor, cond: Cond, at: At) -> Prediction:
        p = denoise(x_t, t, cond, at)
        x0, kind = p.x0, THRESHOLDS[name]
        if kind is not None:
            quantile, most = kind
            layout = denoise.layout or Layout(tuple(x0.shape[1:]))
            sizes = torch.stack([part.abs().flatten(1).quantile(quantile, 1) for part in layout.split(x0)], 1)
            largest = denoise.expand(sizes.clamp(1, most), x0)
            x0 = x0.clamp(-largest, largest) / largest
        x0 = x0.clamp(-1, 1)
        eps = torch.where(p.coeffs.sigma > 0, (x_t - p.coeffs.alpha * x0) / p.coeffs.sigma, p.eps)
        return p._replace(x0=x0, eps=eps)

    return replace(denoise, predict=bounded)


def _inside(t: Tensor, interval: tuple[float, float]) -> bool:
    """Of times (B, K) that of the first part counts: others may be known."""
    t = t if t.ndim == 1 else t[:, 0]
    return bool(interval[0] <= t.min() and t.max() <= interval[1])


def _away(
    x0: Tensor, eps: Tensor, own: Prediction, scale: float | Tensor, channels: int | None = None
) -> Prediction:
    """From the pair (x0, eps) towards `own` and beyond; only in the first `channels` where that is set."""
    pair = []
    for start, end in ((x0, own.x0), (eps, own.eps)):
        moved = torch.lerp(start, end, scale)
        pair.append(moved if channels is None else torch.cat([moved[:, :channels], end[:, channels:]], 1))
    return own._replace(x0=pair[0], eps=pair[1])
