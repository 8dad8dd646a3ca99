"""Guidance: functions from a denoiser to a denoiser. Scale 1 is off."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ditkit.transports import Denoiser, Prediction

Cond = dict[str, Tensor]


def cfg(
    denoise: Denoiser, null: Callable[[Cond], Cond], scale: float, interval: tuple[float, float] = (0.0, 1.0)
) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans, 2022) of all channels: null + scale · (cond - null).

    One call of twice the rows; outside `interval` (in t; Kynkäänniemi et al., 2024) only the
    conditional rows run. The learned variance, where there is one, is the conditional rows'.
    """
    if scale == 1:
        return denoise
    low, high = interval

    def guided(x_t: Tensor, t: Tensor, cond: Cond) -> Prediction:
        if not (low <= t.min() and t.max() <= high):
            return denoise(x_t, t, cond)
        both = {key: torch.cat([cond[key], empty]) for key, empty in null(cond).items()}
        p = denoise(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        n = len(x_t)
        return Prediction(
            coeffs=type(p.coeffs)(*(value[:n] for value in p.coeffs)),
            x_t=x_t,
            x0=torch.lerp(p.x0[n:], p.x0[:n], scale),
            eps=torch.lerp(p.eps[n:], p.eps[:n], scale),
            var=None if p.var is None else p.var[:n],
        )

    return replace(denoise, predict=guided)
