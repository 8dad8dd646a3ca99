"""Samplers that jump from one noise level to the next through the estimate of x0.

The grid ends at t = 0, where only coefficients are needed; every step asks the network once.
"""

from itertools import pairwise

from torch import Tensor

from ditkit.sampling.ode import rows
from ditkit.transports import Denoiser
from ditkit.transports.variational import learned_log_variance


def ddim(denoise: Denoiser, x: Tensor, grid: Tensor, cond: dict, *, noise=None, eta: float = 0.0) -> Tensor:
    """x_s = alpha_s x0 + sigma_s eps (Song et al., 2021, equation 12), on any path.

    With `eta`, that much of the posterior's standard deviation is drawn anew: 0 none, 1 as `ancestral`.
    """
    last = len(grid) - 2
    for i, (t, s) in enumerate(pairwise(grid)):
        prediction = denoise(x, rows(t, x), cond)
        c = denoise.coeffs(rows(s, x), x)
        if eta == 0 or i == last:
            x = c.alpha * prediction.x0 + c.sigma * prediction.eps
        else:
            fresh = eta * (denoise.posterior(rows(t, x), rows(s, x), x).log_small / 2).exp()
            kept = (c.sigma**2 - fresh**2).clamp(min=0).sqrt()
            x = c.alpha * prediction.x0 + kept * prediction.eps + fresh * noise(x)
    return x


def ancestral(denoise: Denoiser, x: Tensor, grid: Tensor, cond: dict, *, noise) -> Tensor:
    """A draw from the posterior of x_s given x_t and the estimated x0 (Ho et al., 2020, algorithm 2).

    The variance is the network's where it learned one, otherwise the posterior's own; the last step
    takes the mean.
    """
    last = len(grid) - 2
    for i, (t, s) in enumerate(pairwise(grid)):
        prediction = denoise(x, rows(t, x), cond)
        step = denoise.posterior(rows(t, x), rows(s, x), x)
        x = step.mean(prediction.x0, x)
        if i < last:
            log_variance = (
                step.log_small if prediction.var is None else learned_log_variance(prediction.var, step)
            )
            x = x + (log_variance / 2).exp() * noise(x)
    return x
