"""In which space a network's errors are measured, whatever it predicts.

An error of one prediction is an error of another by the ratio of their responses (`ditkit.transports.predictions`), so a
network that predicts clean data can be trained with the loss of the velocity (Li & He, 2025), one that predicts v with
that of the noise (Gu et al., 2024), and so on for every pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ditkit.transports.paths import Coeffs, End
from ditkit.transports.predictions import PREDICTIONS

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A mean squared error: of which prediction, and what the error is multiplied by."""

    about: str
    space: str | None = None
    """The name of a prediction; None: of the output itself."""
    factor: Callable[[Coeffs], Tensor] | None = None
    """Multiplies the errors before they are squared."""
    unsafe_at: tuple[End, ...] = ()
    """The ends of a path where the factor is not finite."""

    @property
    def timed(self) -> bool:
        """Whether the space depends on how fast time passes."""
        return self.space is not None and PREDICTIONS[self.space].timed


def likelihood(c: Coeffs) -> Tensor:
    """sqrt(V) / sigma: weights the noise's loss as the likelihood's bound does (SiT, section 3.4)."""
    return c.score_factor.sqrt() / c.sigma


LOSSES: dict[str, Loss] = {
    "output": Loss("of the output itself; of a score of sigma times it, as in SiT"),
    "velocity": Loss("of the velocity that the output means", "velocity"),
    "noise": Loss("of the noise that the output means", "noise"),
    "data": Loss("of the clean data that the output means", "data"),
    "likelihood": Loss("of the noise, weighted as the likelihood's bound", "noise", likelihood, ("data",)),
}


def error(
    predict: str,
    loss: Loss,
    out: Tensor,
    x0: Tensor,
    eps: Tensor,
    c: Coeffs,
    measured: Coeffs,
    weight: Callable[[Coeffs], Tensor] | None = None,
) -> Tensor:
    """The output's error in the loss's space, of the state's shape.

    Args:
        predict: what the output means, by its name in PREDICTIONS.
        x0, eps: data and noise. c: coefficients that broadcast with them, as the output means them.
        measured: the same as the loss means them; of another speed of time at most.
        weight: what its square counts (`ditkit.transports.weights`), in place of the space's own weight, so that losses in all
            spaces are the same.
    """
    prediction, name = PREDICTIONS[predict], predict
    if prediction.compared is not None:
        name, compared = prediction.compared
        prediction, out = PREDICTIONS[name], compared(out, c)
    found = out - prediction.view(x0, eps, c)
    if weight is not None:
        return found * (weight(measured).sqrt() / prediction.response(c))
    if loss.space not in (None, name):
        found = found * (PREDICTIONS[loss.space].response(measured) / prediction.divisor(c))
    return found if loss.factor is None else found * loss.factor(measured)
