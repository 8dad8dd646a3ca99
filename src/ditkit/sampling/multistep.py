"""Steps of second order that ask the network once and remember the last answer.

Both begin with a step of first order (as after an endless one). Step sizes may vary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ditkit.lazy import torch
from ditkit.sampling.solver import Step

if TYPE_CHECKING:
    from torch import Tensor


class Past(NamedTuple):
    """The step before: the network's output (B, *S), and the step's size, () or (K,)."""

    answer: Tensor
    size: Tensor


def ab2(step: Step, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
    """ODE, second order, one evaluation a step (Adams-Bashforth on the velocity)."""
    now = Past(step.ask(x).velocity, step.s - step.t)
    return x + step.size(x) * _ahead(step, now, past), now


def dpmpp_2m(step: Step, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
    """ODE for few evaluations, second order in the log signal-to-noise ratio (DPM-Solver++(2M)).

    Lu et al. (2022), algorithm 2: the linear part is exact, the estimate of x0 is extrapolated. Where the
    ratio is 0 or infinite, at pure noise and at clean data, the step is of first order.
    """
    a, b = step.denoise.path(step.t), step.denoise.path(step.s)
    now = Past(step.ask(x).x0, (b.alpha / b.sigma).log() - (a.alpha / a.sigma).log())
    kept = torch.where(a.sigma > 0, b.sigma / a.sigma, 1.0)
    x0_weight = step.expand(b.alpha - kept * a.alpha, x)
    return step.expand(kept, x) * x + x0_weight * _ahead(step, now, past), now


def _ahead(step: Step, now: Past, past: Past | None) -> Tensor:
    """In the middle of the step, on the line through the last two answers; where one of them is endless, now's."""
    if past is None:
        return now.answer
    weight = now.size / (2 * past.size)
    weight = torch.where(weight.isfinite(), weight, 0.0)
    return now.answer + step.expand(weight, now.answer) * (now.answer - past.answer)
