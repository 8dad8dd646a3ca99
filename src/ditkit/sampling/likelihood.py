"""How likely data are under a model: a variational bound, and the likelihood of its probability-flow ODE.

Both take a denoiser and a time grid, as samplers do. States are images in [-1, 1] whose 256 levels lie
2/255 apart, or latents, for which bits per dimension mean nothing outside one codec.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ditkit.sampling.solver import rows
from ditkit.transports import Denoiser
from ditkit.transports.variational import discretised_nll, gaussian_kl, learned_log_variance

LEVEL = 2 / 255  # between neighbouring 8-bit values of [-1, 1]


def variational_bound(
    denoise: Denoiser, x0: Tensor, grid: Tensor, cond: dict, *, noise: Callable[[Tensor], Tensor]
) -> Tensor:
    """Bits per dimension, an upper bound for each image (B,): Ho et al. (2020), equation 5, over the grid.

    x0 (B, *S); the grid descends to 0 (`time_grid` with use "jump"; all knots of the ddpm path for the
    papers' number). Each term is estimated at one draw of x_t, one evaluation each. The variance is the
    network's where it learned one, otherwise the posterior's, and beta in the step to the data.
    """
    start = denoise.coeffs(rows(grid[0], x0), x0)
    zero = torch.zeros_like(x0)
    total = gaussian_kl(start.alpha * x0, 2 * start.sigma.log(), zero, zero)
    floor: Tensor | float = -math.inf
    for i, (t, s) in enumerate(pairwise(grid)):
        c = denoise.coeffs(rows(t, x0), x0)
        x_t = c.alpha * x0 + c.sigma * noise(x0)
        p = denoise(x_t, rows(t, x0), cond)
        step = denoise.posterior(rows(t, x0), rows(s, x0), x0)
        mean, last = step.mean(p.x0, x_t), i == len(grid) - 2
        if p.var is not None:
            log_variance = learned_log_variance(p.var, step, floor)
        else:
            log_variance = step.log_large if last else step.log_small
        if last:
            total = total + discretised_nll(x0, mean, log_variance)
        else:
            total = total + gaussian_kl(step.mean(x0, x_t), step.log_small, mean, log_variance)
            floor = step.log_small  # stands in where the next posterior has none
    return total.flatten(1).mean(1) / math.log(2)


def log_likelihood(
    denoise: Denoiser, x0: Tensor, grid: Tensor, cond: dict, *, noise: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """log p(x0) in nats (B,), and the noise (B, *S) that the flow takes x0 to.

    By the change of variables along the probability-flow ODE (Song et al., 2021, equation 39), Heun's rule on
    a sampler's descending grid, walked upwards. The divergence is Hutchinson's estimate with one Rademacher
    probe for the whole trajectory, the signs of `noise`: unbiased, and smooth in t. Where the grid ends above
    0 it is the density of x0 as a state of that time. Guidance has no density; give a plain denoiser.
    """
    probe = noise(x0).sign()
    x, divergence = x0, x0.new_zeros(len(x0))
    for t, s in pairwise(grid.flip(0)):
        step = denoise.expand(rows(s - t, x), x)
        velocity, here = _flow(denoise, x, t, cond, probe, step)
        ahead, there = _flow(denoise, x + step * velocity, s, cond, probe, step)
        x = x + step * (velocity + ahead) / 2
        divergence = divergence + (here + there) / 2
    prior = -(x**2 + math.log(2 * math.pi)) / 2
    return prior.flatten(1).sum(1) + divergence, x


def bits_per_dim(log_density: Tensor, dims: int) -> Tensor:
    """Of 8-bit images, from the log density (nats) of their states in [-1, 1] of `dims` numbers each."""
    return -log_density / (dims * math.log(2)) - math.log2(LEVEL)


def _flow(
    denoise: Denoiser, x: Tensor, t: Tensor, cond: dict, probe: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """The velocity, and step · its divergence as the probe sees it, (B,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        velocity = denoise(x, rows(t, x), cond).velocity
        (gradient,) = torch.autograd.grad((velocity * step * probe).sum(), x)
    return velocity.detach(), (gradient * probe).flatten(1).sum(1)
