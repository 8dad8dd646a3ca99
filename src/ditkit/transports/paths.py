"""Paths: x_t = alpha(t) · x0 + sigma(t) · eps, with t = 0 data and t = 1 noise.

A path is a function of t that gives alpha, sigma and their derivatives in t, in t's own dtype (use
float64 where the last bit matters), and a declaration of what follows from it: its knots, its norm and the times at
which a network can be evaluated. Networks, losses and samplers live elsewhere.

Sources: linear, GVP and VP from SiT (Ma et al., 2024, section 3), with time reversed against its
code; the discrete DDPM process from Ho et al. (2020) as DiT uses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


DDPM_STEPS = 1000


class Coeffs(NamedTuple):
    """alpha, sigma and d/dt of both, all of the shape of t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    @property
    def score_factor(self) -> Tensor:
        """V in velocity = alpha'/alpha x_t - V score: V = sigma sigma' - sigma² alpha'/alpha.

        Without bounds where alpha vanishes; cut off 1e-3 before, where SiT starts such paths.
        """
        return self.sigma * self.d_sigma - self.sigma**2 * self.d_alpha / self.alpha.clamp(min=1e-3)


End = Literal["data", "noise"]
"""Where sigma vanishes (t = 0), and where alpha does (t = 1)."""


@dataclass(frozen=True)
class Path:
    """How data becomes noise. Called with times of any shape, it gives the coefficients there, of the same shape."""

    coeffs: Callable[[Tensor], Coeffs]
    knots: int | None = None
    """Trained at 1/knots, 2/knots, ..., 1 only; None: at all times."""
    norm: int = 2
    """alpha^norm + sigma^norm = 1."""
    ends: tuple[float, float] = (0.0, 1.0)
    """The lowest and the highest time at which a network is trained or evaluated."""
    safe_ends: tuple[float, float] = (1e-3, 1 - 1e-3)
    """The same where what is computed divides by sigma, or by alpha."""
    trained_from: float | None = None
    """The lowest time in training, whatever is computed, where it is another."""

    def __call__(self, t: Tensor) -> Coeffs:
        return self.coeffs(t)

    def interval(self, unsafe_at: Collection[End], training: bool) -> tuple[float, float]:
        """The lowest and the highest time, of what divides by zero at these ends of a path."""
        low = self.safe_ends[0] if "data" in unsafe_at else self.ends[0]
        high = self.safe_ends[1] if "noise" in unsafe_at else self.ends[1]
        return (low if self.trained_from is None or not training else self.trained_from), high


def shifted(c: Coeffs, factor: Tensor, norm: int) -> Coeffs:
    """The path at the same t with `factor` times the noise for the signal: sigma/alpha is multiplied by it.

    alpha^norm + sigma^norm stays 1: norm 2 for paths that preserve variance (the shift of resolutions: Gu et al., 2024;
    Hoogeboom et al., 2023), 1 for straight ones (t' = factor t / (1 + (factor - 1) t): Esser et al., 2024).
    `factor` broadcasts with the coefficients.
    """
    sigma, d_sigma = factor * c.sigma, factor * c.d_sigma
    total = c.alpha**norm + sigma**norm  # and its derivative over norm
    d_total = c.alpha ** (norm - 1) * c.d_alpha + sigma ** (norm - 1) * d_sigma
    scale = total ** (-1 / norm)
    d_scale = -scale * d_total / total
    return Coeffs(
        c.alpha * scale,
        sigma * scale,
        c.d_alpha * scale + c.alpha * d_scale,
        d_sigma * scale + sigma * d_scale,
    )


def linear(t: Tensor) -> Coeffs:
    """alpha = 1 - t, sigma = t: straight lines (rectified flow, flow matching)."""
    one = torch.ones_like(t)
    return Coeffs(1 - t, t, -one, one)


def gvp(t: Tensor) -> Coeffs:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): alpha² + sigma² = 1, constant speed."""
    quarter = math.pi / 2
    alpha, sigma = (quarter * (1 - t)).sin(), (quarter * t).sin()  # sin of 1 - t: exactly 0 at t = 1
    return Coeffs(alpha, sigma, -quarter * sigma, quarter * alpha)


def vp(t: Tensor, beta_min: float = 0.1, beta_max: float = 20.0) -> Coeffs:
    """The continuous variance-preserving process: log alpha = -t² (beta_max - beta_min)/4 - t beta_min/2."""
    log_alpha = -(t**2) * (beta_max - beta_min) / 4 - t * beta_min / 2
    d_log_alpha = -t * (beta_max - beta_min) / 2 - beta_min / 2
    return _variance_preserving(log_alpha, d_log_alpha)


def ddpm(t: Tensor) -> Coeffs:
    """DDPM's 1,000 linear betas: index i is the knot t = (i + 1)/1000; t = 0 is the clean image.

    Between knots log alpha is interpolated linearly. Close to, but not, the continuous `vp`
    (alpha differs by up to 1e-3).
    """
    return _between_knots(_ddpm_log_alpha(), t)


def cosine(t: Tensor) -> Coeffs:
    """1,000 betas of the cosine schedule (Nichol & Dhariwal, 2021, section 3.2, none larger than 0.999), as released for
    Matryoshka Diffusion; knots and what lies between as in `ddpm`."""
    return _between_knots(_cosine_log_alpha(), t)


def _between_knots(table: Tensor, t: Tensor) -> Coeffs:
    """`table`: log alpha at t = 0, 1/1000, ..., 1."""
    table = table.to(t.device, t.dtype)
    steps = len(table) - 1
    position = (t * steps).clamp(0, steps)
    # A knot belongs to the interval below it (where sampling goes on); 1e-3 absorbs t's rounding.
    left = (position - 1e-3).ceil().clamp(1, steps).long() - 1
    slope = table[left + 1] - table[left]
    return _variance_preserving(table[left] + (position - left) * slope, slope * steps)


@lru_cache(maxsize=1)
def _ddpm_log_alpha() -> Tensor:
    """log alpha at t = 0, 1/1000, ..., 1, float64; alpha² is the cumulative product of 1 - beta."""
    # On the CPU whatever the default device: the table is kept for every later caller.
    betas = torch.linspace(1e-4, 2e-2, DDPM_STEPS, dtype=torch.float64, device="cpu")
    return torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0) / 2])


@lru_cache(maxsize=1)
def _cosine_log_alpha() -> Tensor:
    """The same of the cosine schedule."""
    knots = torch.arange(DDPM_STEPS + 1, dtype=torch.float64, device="cpu") / DDPM_STEPS
    signal = (math.pi / 2 * (knots + 0.008) / 1.008).cos().square()
    betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    return torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0) / 2])


def _variance_preserving(log_alpha: Tensor, d_log_alpha: Tensor) -> Coeffs:
    alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
    return Coeffs(alpha, sigma, alpha * d_log_alpha, -(alpha**2) * d_log_alpha / sigma)


def _discrete(coeffs: Callable[[Tensor], Coeffs]) -> Path:
    """A path of DDPM's steps, the first of which is its lowest time; alpha never vanishes."""
    first = 1 / DDPM_STEPS
    return Path(coeffs, knots=DDPM_STEPS, ends=(first, 1.0), safe_ends=(first, 1.0))


# The ends are SiT's (its `train_eps` and `sample_eps`).
PATHS: dict[str, Path] = {
    "linear": Path(linear, norm=1),
    "gvp": Path(gvp),
    "vp": Path(vp, ends=(1e-3, 1.0), safe_ends=(1e-3, 1.0), trained_from=1e-5),
    "ddpm": _discrete(ddpm),
    "cosine": _discrete(cosine),
}
