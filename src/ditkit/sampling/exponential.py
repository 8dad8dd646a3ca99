"""Steps that are exact in the linear part of the ODE or SDE and follow a polynomial through the network's last answers.

With l = log(alpha / sigma), half the log signal-to-noise ratio, and h = l_s - l_t, a step from t to s is

    x_s = (sigma_s / sigma_t) x_t + alpha_s · integral over u from 0 to h of e^(u - h) x0(l_t + u)

(Lu et al., "DPM-Solver++", 2022, equation 9). At clean data, where l is endless, a step is of first order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ditkit.lazy import torch
from ditkit.sampling.solver import Step

if TYPE_CHECKING:
    from torch import Tensor

ORDER = 3
NOISE = -20.0
"""What l counts at least."""


class Past(NamedTuple):
    """Where the last step began, and what the network answered until then, the newest first."""

    t: Tensor
    x: Tensor
    ratios: tuple[Tensor, ...]
    """l at each answer, () or (K,)."""
    answers: tuple[Tensor, ...]
    """x0, (B, *S) each."""


def unipc(step: Step, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
    """ODE for few evaluations, third order: each evaluation also corrects the step that led to it (UniPC).

    Zhao et al. (2023), with the polynomials' exact integrals.
    """
    before = ((), ()) if past is None else (past.ratios, past.answers)
    ratios, answers = (log_ratio(step, step.t), *before[0]), (step.ask(x).x0, *before[1])
    if past is not None:
        x = _moved(step, past.t, step.t, past.x, ratios, answers)
    ratios, answers = ratios[:ORDER], answers[:ORDER]
    return _moved(step, step.t, step.s, x, ratios, answers), Past(step.t, x, ratios, answers)


def sde_dpmpp_2m(step: Step, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
    """SDE for few evaluations, second order in the log signal-to-noise ratio (SDE-DPM-Solver++(2M)).

    Lu et al. (2022), algorithm 3: with e^(-2h) in place of e^(-h), and as much new noise as keeps the variance.
    """
    a, b = step.denoise.path(step.t), step.denoise.path(step.s)
    ratio, answer = log_ratio(step, step.t), step.ask(x).x0
    ahead = answer
    if past is not None:
        weight = (log_ratio(step, step.s) - ratio) / (2 * (ratio - log_ratio(step, past.t)))
        weight = torch.where(weight.isfinite(), weight, 0.0)
        ahead = answer + step.expand(weight, x) * (answer - past.answers[0])
    shrunk = torch.where(a.sigma > 0, b.sigma * a.alpha / (b.alpha * a.sigma), 1.0)  # e^(-h)
    kept = torch.where(a.sigma > 0, b.sigma / a.sigma, 1.0) * shrunk
    x = step.expand(kept, x) * x + step.expand(b.alpha * (1 - shrunk**2), x) * ahead
    if not step.last:
        x = x + step.expand(b.sigma * (1 - shrunk**2).clamp(min=0).sqrt(), x) * step.noise(x)
    return x, Past(step.t, x, (ratio,), (answer,))


def log_ratio(step: Step, t: Tensor) -> Tensor:
    """log(alpha / sigma) at t; bounded at pure noise, from where nothing counts much."""
    c = step.denoise.path(t)
    return (c.alpha / c.sigma).log().clamp(min=NOISE)


def _moved(
    step: Step, t: Tensor, s: Tensor, x: Tensor, ratios: tuple[Tensor, ...], answers: tuple[Tensor, ...]
) -> Tensor:
    """From t to s, with the answers at these l; with the first of them alone at clean data, where the integrals have no bounds."""
    a, b = step.denoise.path(t), step.denoise.path(s)
    kept = torch.where(a.sigma > 0, b.sigma / a.sigma, 1.0)
    start = log_ratio(step, t)
    found = integrals(log_ratio(step, s) - start, [ratio - start for ratio in ratios])
    bounded = torch.stack(found).isfinite().all(0)
    # All of them together: the rest of x_s if data were constant.
    moved = step.expand(kept, x) * x + step.expand(b.alpha - kept * a.alpha, x) * answers[0]
    for weight, answer in zip(found[1:], answers[1:], strict=True):
        moved = moved + step.expand(torch.where(bounded, b.alpha * weight, 0.0), x) * (answer - answers[0])
    return moved


def integrals(h: Tensor, nodes: list[Tensor]) -> list[Tensor]:
    """Over u from 0 to h of e^(u - h) times the polynomials that are 1 at one of the nodes and 0 at the others."""
    moments = [-torch.expm1(-h)]  # of u^k
    for k in range(1, len(nodes)):
        moments.append(h**k - k * moments[-1])
    found = []
    for own in nodes:
        polynomial = [torch.ones_like(h)]  # its coefficients, the constant's first
        for other in nodes:
            if other is not own:
                up, same = [torch.zeros_like(h), *polynomial], [*polynomial, torch.zeros_like(h)]
                polynomial = [(u - other * v) / (own - other) for u, v in zip(up, same, strict=True)]
        found.append(sum((c * m for c, m in zip(polynomial, moments, strict=True)), torch.zeros_like(h)))
    return found
