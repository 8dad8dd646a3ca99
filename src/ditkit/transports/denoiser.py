"""Denoiser: what samplers see of a network, whatever it predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ditkit.device import sent
from ditkit.layout import Cond, Layout
from ditkit.transports.paths import Coeffs
from ditkit.transports.predictions import Prediction
from ditkit.transports.variational import Posterior, posterior

if TYPE_CHECKING:
    from torch import Tensor

Network = Callable[["Tensor", "Tensor", Cond], "Tensor"]


@dataclass(frozen=True)
class At:
    """Where in a trajectory the network is evaluated: what a solver knows besides the state and its time."""

    to: Tensor | None = None
    """The time that the step goes to, () or (K,)."""
    index: int = 0
    """The number of the step."""
    stage: int = 0
    """The number of the evaluation in the step."""
    whole: bool = False
    """Whether the solver takes the answer for the whole step, to `to`, and not for its beginning: a network that knows the
    mean velocity of a step gives that."""
    roles: tuple[str, ...] = ("cond",)
    """What the rows of the state are, in as many equal parts: with the condition (cond), without (null), by a
    worse network (weak)."""
    store: dict[str, Any] = field(default_factory=dict)
    """What a trajectory keeps from one evaluation to the next."""


@dataclass(frozen=True)
class Denoiser:
    """What samplers see of a network: (x_t, t (B,) or (B, K), cond, at) -> Prediction.

    Also the path, for steps that need coefficients at the time they go to. Guidance is a function
    from denoiser to denoiser: `dataclasses.replace(denoise, predict=...)`.
    """

    predict: Callable[[Tensor, Tensor, Cond, At], Prediction]
    path: Callable[[Tensor], Coeffs]
    layout: Layout | None = None
    meaning: str = "velocity"
    """What the network predicts, by its name in PREDICTIONS."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond, at: At | None = None) -> Prediction:
        return self.predict(x_t, t, cond, at or At())

    def expand(self, values: Tensor, x: Tensor) -> Tensor:
        """(B,) or (B, K) values to what broadcasts with the state x, in its dtype."""
        return sent((self.layout or Layout(tuple(x.shape[1:]))).expand(values), x.device, x.dtype)

    def coeffs(self, t: Tensor, x: Tensor) -> Coeffs:
        """The path's coefficients at t (B,) or (B, K), broadcasting with the state x."""
        return expanded(self.path(t), self.layout or Layout(tuple(x.shape[1:])), x)

    def posterior(self, t: Tensor, s: Tensor, x: Tensor) -> Posterior:
        """The reverse step from t to the earlier s, broadcasting with the state x."""
        step = posterior(self.path(t), self.path(s))
        return expanded(step, self.layout or Layout(tuple(x.shape[1:])), x)


Values = TypeVar("Values", Coeffs, Posterior)


def expanded(values: Values, layout: Layout, x: Tensor) -> Values:
    """Computed at the times' precision (float64 in samplers: small differences), then as the state's."""
    return type(values)(*(sent(layout.expand(value), x.device, x.dtype) for value in values))
