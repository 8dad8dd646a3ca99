"""Steps of the probability-flow ODE dx/dt = velocity(x, t), from noise to data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ditkit.sampling.solver import Step
from ditkit.transports import PREDICTIONS

if TYPE_CHECKING:
    from torch import Tensor


def euler(step: Step, x: Tensor, memory: None = None) -> tuple[Tensor, None]:
    """First order, one evaluation a step."""
    return x + step.size(x) * step.ask(x).velocity, None


def mean_velocity(step: Step, x: Tensor, memory: None = None) -> tuple[Tensor, None]:
    """One evaluation a step, exact for any step where the network knows its mean velocity (transport.method mean_flow); of
    others Euler's."""
    return x + step.size(x) * step.ask(x, whole=True).velocity, None


def heun(step: Step, x: Tensor, memory: None = None) -> tuple[Tensor, None]:
    """Second order (the explicit trapezoidal rule), two evaluations a step.

    Of a network whose velocity is divided by sigma (it predicts the data) the last step is Euler's, one evaluation (as in
    Karras et al., 2022, algorithm 1): where sigma is nearly 0, so would the network's errors be divided.
    """
    size, velocity = step.size(x), step.ask(x).velocity
    if step.last and PREDICTIONS[step.denoise.meaning].divides_by_sigma:
        return x + size * velocity, None
    ahead = step.ask(x + size * velocity, step.s, stage=1).velocity
    return x + size * (velocity + ahead) / 2, None
