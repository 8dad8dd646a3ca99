"""Solvers of the reverse SDE with the same marginals as the ODE (SiT, equation 4).

With t falling, dx = (velocity - D score) dt + sqrt(2 D) dW for any D(t) >= 0; D = sigma here (the
default of SiT's code, whose paper writes w = 2 D). sigma · score = -eps has no singularity.
"""

from itertools import pairwise

from torch import Tensor

from ditkit.sampling.ode import rows
from ditkit.transports import Denoiser


def euler_maruyama(denoise: Denoiser, x: Tensor, grid: Tensor, cond: dict, *, noise) -> Tensor:
    """One evaluation a step; the last step takes the mean and adds no noise."""
    last = len(grid) - 2
    for i, (t, s) in enumerate(pairwise(grid)):
        step = denoise.expand(rows(t - s, x), x)
        prediction = denoise(x, rows(t, x), cond)
        sigma = prediction.coeffs.sigma
        x = x - step * (prediction.velocity + prediction.eps)  # D score = -eps
        if i < last:
            x = x + (2 * sigma * step).sqrt() * noise(x)
    return x
