"""Steps that jump from one noise level to the next through the estimate of x0.

The grid ends at t = 0, where only coefficients are needed; every step evaluates the network once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ditkit.sampling.solver import Step, rows
from ditkit.transports.variational import Posterior, learned_log_variance

if TYPE_CHECKING:
    from torch import Tensor


def ddim(step: Step, x: Tensor, memory: None = None, *, eta: float = 0.0) -> tuple[Tensor, None]:
    """x_s = alpha_s x0 + sigma_s eps (Song et al., 2021, equation 12), on any path.

    With `eta`, that much of the posterior's standard deviation is drawn anew: 0 none, 1 as `ancestral`.
    """
    p = step.ask(x)
    c = step.denoise.coeffs(rows(step.s, x), x)
    if eta == 0 or step.last:
        return c.alpha * p.x0 + c.sigma * p.eps, None
    fresh = eta * (_posterior(step, x).log_small / 2).exp()
    kept = (c.sigma**2 - fresh**2).clamp(min=0).sqrt()
    return c.alpha * p.x0 + kept * p.eps + fresh * step.noise(x), None


def ancestral(step: Step, x: Tensor, memory: None = None) -> tuple[Tensor, None]:
    """A draw from the posterior of x_s given x_t and the estimated x0 (Ho et al., 2020, algorithm 2).

    The variance is the network's where it learned one, otherwise the posterior's own; the last step
    takes the mean.
    """
    p, posterior = step.ask(x), _posterior(step, x)
    mean = posterior.mean(p.x0, x)
    if step.last:
        return mean, None
    log_variance = posterior.log_small if p.var is None else learned_log_variance(p.var, posterior)
    return mean + (log_variance / 2).exp() * step.noise(x), None


def _posterior(step: Step, x: Tensor) -> Posterior:
    return step.denoise.posterior(rows(step.t, x), rows(step.s, x), x)
