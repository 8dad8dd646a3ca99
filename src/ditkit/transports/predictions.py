"""What a network's output means, and the one hub every meaning is decoded to: the pair (x0, eps).

N decoders and N views instead of N² conversions. With D = alpha · sigma' - alpha' · sigma the pair
solves x_t = alpha x0 + sigma eps together with the equation that defines the prediction.

`v` (Salimans & Ho, 2022; MDM and diffusers mean this) is alpha · eps - sigma · x0 and is not the velocity.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ditkit.transports.interpolants import Coeffs


class Prediction(NamedTuple):
    """A denoiser's answer at (x_t, t): coefficients that broadcast with the state, and the hub pair."""

    coeffs: Coeffs
    x_t: Tensor
    x0: Tensor
    eps: Tensor
    var: Tensor | None = None
    """A learned-variance output in [-1, 1], or None; only the ancestral step reads it."""

    @property
    def velocity(self) -> Tensor:
        return velocity(self.x0, self.eps, self.coeffs)

    @property
    def score(self) -> Tensor:
        return score(self.x0, self.eps, self.coeffs)


def velocity(x0: Tensor, eps: Tensor, c: Coeffs) -> Tensor:
    """dx_t/dt = alpha' x0 + sigma' eps."""
    return c.d_alpha * x0 + c.d_sigma * eps


def noise(x0: Tensor, eps: Tensor, c: Coeffs) -> Tensor:
    return eps


def data(x0: Tensor, eps: Tensor, c: Coeffs) -> Tensor:
    return x0


def score(x0: Tensor, eps: Tensor, c: Coeffs) -> Tensor:
    """grad log p(x_t | x0) = -eps / sigma."""
    return -eps / c.sigma


def v(x0: Tensor, eps: Tensor, c: Coeffs) -> Tensor:
    return c.alpha * eps - c.sigma * x0


def from_velocity(out: Tensor, x_t: Tensor, c: Coeffs) -> tuple[Tensor, Tensor]:
    determinant = c.alpha * c.d_sigma - c.d_alpha * c.sigma
    x0 = (c.d_sigma * x_t - c.sigma * out) / determinant
    return x0, (c.alpha * out - c.d_alpha * x_t) / determinant


def from_noise(out: Tensor, x_t: Tensor, c: Coeffs) -> tuple[Tensor, Tensor]:
    return (x_t - c.sigma * out) / c.alpha, out


def from_data(out: Tensor, x_t: Tensor, c: Coeffs) -> tuple[Tensor, Tensor]:
    return out, (x_t - c.alpha * out) / c.sigma


def from_score(out: Tensor, x_t: Tensor, c: Coeffs) -> tuple[Tensor, Tensor]:
    return from_noise(-c.sigma * out, x_t, c)


def from_v(out: Tensor, x_t: Tensor, c: Coeffs) -> tuple[Tensor, Tensor]:
    square = c.alpha**2 + c.sigma**2
    return (c.alpha * x_t - c.sigma * out) / square, (c.sigma * x_t + c.alpha * out) / square


class Meaning(NamedTuple):
    """One prediction: its view of the hub, and its decoder back to it."""

    view: Callable[[Tensor, Tensor, Coeffs], Tensor]
    decode: Callable[[Tensor, Tensor, Coeffs], tuple[Tensor, Tensor]]


PREDICTIONS: dict[str, Meaning] = {
    "velocity": Meaning(velocity, from_velocity),
    "noise": Meaning(noise, from_noise),
    "data": Meaning(data, from_data),
    "score": Meaning(score, from_score),
    "v": Meaning(v, from_v),
}
