"""Solvers of the probability-flow ODE dx/dt = velocity(x, t), from noise to data."""

from itertools import pairwise

from torch import Tensor

from ditkit.transports import Denoiser


def rows(t: Tensor, x: Tensor) -> Tensor:
    """One grid point, () or (K,), for every row of the state: (B,) or (B, K)."""
    return t.expand(len(x), *t.shape)


def euler(denoise: Denoiser, x: Tensor, grid: Tensor, cond: dict, *, noise=None) -> Tensor:
    """First order, one evaluation a step. x (B, *S) at grid[0] -> state at grid[-1]."""
    for t, s in pairwise(grid):
        step = denoise.expand(rows(s - t, x), x)
        x = x + step * denoise(x, rows(t, x), cond).velocity
    return x


def heun(denoise: Denoiser, x: Tensor, grid: Tensor, cond: dict, *, noise=None) -> Tensor:
    """Second order (the explicit trapezoidal rule), two evaluations a step.

    Of a network that predicts the data the last step is Euler's, one evaluation (as in Karras et al., 2022, algorithm 1):
    its velocity is divided by sigma, and where that is nearly 0 so are the network's errors.
    """
    last = len(grid) - 2
    for i, (t, s) in enumerate(pairwise(grid)):
        step = denoise.expand(rows(s - t, x), x)
        velocity = denoise(x, rows(t, x), cond).velocity
        if i == last and denoise.meaning == "data":
            return x + step * velocity
        ahead = denoise(x + step * velocity, rows(s, x), cond).velocity
        x = x + step * (velocity + ahead) / 2
    return x
