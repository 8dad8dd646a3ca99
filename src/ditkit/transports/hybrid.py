"""The variational bound of a learned variance, the second term of the hybrid loss (Nichol & Dhariwal, 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ditkit.device import sent
from ditkit.layout import Layout
from ditkit.lazy import torch
from ditkit.transports.denoiser import expanded
from ditkit.transports.paths import Coeffs
from ditkit.transports.variational import (
    discretised_nll,
    gaussian_kl,
    learned_log_variance,
    posterior,
)

if TYPE_CHECKING:
    from torch import Tensor


def bound(
    coeffs: Callable[[Tensor], Coeffs],
    knots: int,
    x0_hat: Tensor,
    var: Tensor,
    *,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    layout: Layout,
) -> Tensor:
    """The bound's term at t, (B,) or (B, K), in bits per dimension, (B, K).

    Args:
        coeffs: the path, of `knots` steps.
        x0_hat: data as predicted; detach it, so that gradients reach the variance only.
        var: the variance as predicted, in [-1, 1].
    """
    step = expanded(posterior(coeffs(t), coeffs(t - 1 / knots)), layout, x0)
    mean_hat = step.mean(x0_hat, x_t)
    log_var_hat = learned_log_variance(var, step, log_variance_floor(coeffs, knots))
    kl = gaussian_kl(step.mean(x0, x_t), step.log_small.clamp(min=-50), mean_hat, log_var_hat)
    nll = discretised_nll(x0, mean_hat, log_var_hat)
    first = sent(layout.expand(t) < 1.5 / knots, x0.device)
    return layout.mean(torch.where(first, nll, kl)) / math.log(2)


def log_variance_floor(coeffs: Callable[[Tensor], Coeffs], knots: int) -> float:
    """What stands in for the log variance of the very last step, whose posterior has none: that of
    the step before it (DiT's process does so)."""
    a, b = (coeffs(torch.tensor([k / knots], dtype=torch.float64)) for k in (2, 1))
    return posterior(a, b).log_small.item()
