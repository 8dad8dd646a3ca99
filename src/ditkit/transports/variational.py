"""One reverse step of a Gaussian process between two times, and its variational bound.

A step from time a down to time b < a is fixed by (alpha, sigma) at both: with alpha_ab = alpha_a /
alpha_b and the variance added from b to a, beta = sigma_a² - alpha_ab² sigma_b², the posterior of
x_b given x_a and x0 is Gaussian. With alpha² + sigma² = 1 and knots of DDPM this is Ho et al. (2020),
equations 6-7, for any respacing; other paths follow from the same algebra.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from ditkit.lazy import torch
from ditkit.transports.paths import Coeffs

if TYPE_CHECKING:
    from torch import Tensor


class Posterior(NamedTuple):
    """x_b given x_a and x0: mean = x0_weight · x0 + x_weight · x_a, and two candidate log variances."""

    x0_weight: Tensor
    x_weight: Tensor
    log_small: Tensor
    """log of the posterior's variance; -inf where sigma_b = 0."""
    log_large: Tensor
    """log beta, the variance added from b to a."""

    def mean(self, x0: Tensor, x_a: Tensor) -> Tensor:
        return self.x0_weight * x0 + self.x_weight * x_a


def posterior(a: Coeffs, b: Coeffs) -> Posterior:
    """The step from coefficients `a` to the less noisy `b`."""
    alpha_ab = a.alpha / b.alpha
    beta = a.sigma**2 - alpha_ab**2 * b.sigma**2
    weight = b.sigma**2 / a.sigma**2
    return Posterior(
        x0_weight=b.alpha * beta / a.sigma**2,
        x_weight=alpha_ab * weight,
        log_small=(beta * weight).log(),
        log_large=beta.log(),
    )


def learned_log_variance(var: Tensor, step: Posterior, floor: Tensor | float = -math.inf) -> Tensor:
    """Between the two candidates, log-linearly, by the network's output in [-1, 1] (Nichol & Dhariwal,
    2021, equation 15). `floor` stands in for log_small where that is -inf (the step to clean data)."""
    fraction = (var + 1) / 2
    small = step.log_small.clamp(min=floor)
    return fraction * step.log_large + (1 - fraction) * small


def gaussian_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """KL(N(mean1, var1) || N(mean2, var2)), element by element, in nats."""
    ratio = (log_var1 - log_var2).exp() + (mean1 - mean2) ** 2 * (-log_var2).exp()
    return (log_var2 - log_var1 - 1 + ratio) / 2


def discretised_nll(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """-log of the mass a Gaussian puts on the 8-bit bin x0 ± 1/255 of [-1, 1], in nats.

    The normal CDF in its tanh approximation, the outer bins open, logarithms floored at 1e-12: as in
    the process DiT trains with, where this pixel likelihood is applied to latents too.
    """
    inverse_std = (-log_var / 2).exp()
    upper = _approximate_cdf((x0 - mean + 1 / 255) * inverse_std)
    lower = _approximate_cdf((x0 - mean - 1 / 255) * inverse_std)
    mass = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
    return -mass.clamp(min=1e-12).log()


def _approximate_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
