"""Solvers of second order that ask the network once a step and remember its last answer.

Both start with a step of first order (as after an endless one). Step sizes may vary.
"""

from itertools import pairwise

import torch
from torch import Tensor

from ditkit.sampling.ode import rows
from ditkit.transports import Denoiser


def ab2(denoise: Denoiser, x: Tensor, grid: Tensor, cond: dict, *, noise=None) -> Tensor:
    """ODE, second order, one evaluation a step (Adams-Bashforth on the velocity)."""
    last, before = torch.zeros_like(x), grid.new_tensor(torch.inf)
    for t, s in pairwise(grid):
        velocity = denoise(x, rows(t, x), cond).velocity
        step = s - t
        ahead = _extrapolated(denoise, velocity, last, step / (2 * before))
        x = x + denoise.expand(rows(step, x), x) * ahead
        last, before = velocity, step
    return x


def dpmpp_2m(denoise: Denoiser, x: Tensor, grid: Tensor, cond: dict, *, noise=None) -> Tensor:
    """ODE for few evaluations, second order in the log signal-to-noise ratio (DPM-Solver++(2M)).

    Lu et al. (2022), algorithm 2: the linear part is exact, the estimate of x0 is extrapolated. Where the
    ratio is 0 or infinite, at pure noise and at clean data, the step is of first order.
    """
    last, before = torch.zeros_like(x), grid.new_tensor(torch.inf)
    for t, s in pairwise(grid):
        x0 = denoise(x, rows(t, x), cond).x0
        a, b = denoise.path(t), denoise.path(s)
        step = (b.alpha / b.sigma).log() - (a.alpha / a.sigma).log()
        ahead = _extrapolated(denoise, x0, last, step / (2 * before))
        kept = torch.where(a.sigma > 0, b.sigma / a.sigma, 1.0)
        x0_weight = b.alpha - kept * a.alpha
        x = denoise.expand(rows(kept, x), x) * x + denoise.expand(rows(x0_weight, x), x) * ahead
        last, before = x0, step
    return x


def _extrapolated(denoise: Denoiser, now: Tensor, last: Tensor, weight: Tensor) -> Tensor:
    """To the middle of the next step, along the line through the last two; not where that is endless."""
    weight = torch.where(weight.isfinite(), weight, 0.0)
    return now + denoise.expand(rows(weight, now), now) * (now - last)
