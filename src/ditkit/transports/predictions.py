"""What a network's output means, and the one hub every meaning is decoded to: the pair (x0, eps).

N decoders and N views instead of N² conversions. With D = alpha · sigma' - alpha' · sigma the pair
solves x_t = alpha x0 + sigma eps together with the equation that defines the prediction.

The decoded pair always fits x_t, so its error is k · (sigma, -alpha) with some number k for each of the state's. Views are
linear: an error of a prediction is k times its response, the view of (sigma, -alpha), and an error of one is an error of
another by the ratio of their responses (`ditkit.transports.losses`).

`v` (Salimans & Ho, 2022; MDM and diffusers mean this) is alpha · eps - sigma · x0 and is not the velocity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ditkit.transports.paths import Coeffs, End

if TYPE_CHECKING:
    from torch import Tensor


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
    """eps, the noise in x_t."""
    return eps


def data(x0: Tensor, eps: Tensor, c: Coeffs) -> Tensor:
    """x0, the data in x_t."""
    return x0


def score(x0: Tensor, eps: Tensor, c: Coeffs) -> Tensor:
    """grad log p(x_t | x0) = -eps / sigma."""
    return -eps / c.sigma


def v(x0: Tensor, eps: Tensor, c: Coeffs) -> Tensor:
    """alpha eps - sigma x0 (Salimans & Ho, 2022)."""
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


@dataclass(frozen=True)
class Parametrisation:
    """One meaning of a network's output: its view of the hub, its decoder back to it, and what follows from them."""

    view: Callable[[Tensor, Tensor, Coeffs], Tensor]
    """(x0, eps, coefficients) to the output."""
    decode: Callable[[Tensor, Tensor, Coeffs], tuple[Tensor, Tensor]]
    """(output, x_t, coefficients) to (x0, eps)."""
    timed: bool = False
    """Whether it depends on how fast time passes: on the derivatives of the path."""
    unsafe_at: tuple[End, ...] = ()
    """The ends of a path at which it is neither trained nor evaluated, because something divides by zero there."""
    least: Mapping[str, float] = field(default_factory=dict)
    """Of coefficients that its response vanishes with: what they count at least where errors are divided by it."""
    compared: tuple[str, Callable[[Tensor, Coeffs], Tensor]] | None = None
    """The prediction that it is compared as, and the output as that; None: the output itself."""

    @property
    def divides_by_sigma(self) -> bool:
        """Whether what it makes of the noise is as uncertain, near the data, as its output's error over sigma."""
        return "sigma" in self.least

    def response(self, c: Coeffs) -> Tensor:
        """The error of the output where the pair's is (sigma, -alpha)."""
        return self.view(c.sigma, -c.alpha, c)

    def divisor(self, c: Coeffs) -> Tensor:
        """The response, bounded away from zero."""
        return self.response(
            c._replace(**{name: getattr(c, name).clamp(min=x) for name, x in self.least.items()})
        )


# A score is -eps / sigma, so SiT compares sigma · score with -eps. It begins paths 1e-3 before alpha vanishes. Clean data
# divides by sigma as if it were at least 0.05 (Li & He, 2025).
PREDICTIONS: dict[str, Parametrisation] = {
    "velocity": Parametrisation(velocity, from_velocity, timed=True),
    "noise": Parametrisation(noise, from_noise, unsafe_at=("data", "noise"), least={"alpha": 1e-3}),
    "data": Parametrisation(data, from_data, unsafe_at=("data",), least={"sigma": 0.05}),
    "score": Parametrisation(
        score,
        from_score,
        unsafe_at=("data", "noise"),
        compared=("noise", lambda out, c: -c.sigma * out),
    ),
    "v": Parametrisation(v, from_v),
}
