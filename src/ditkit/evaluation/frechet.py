"""Fréchet distance between two sets of feature vectors, each seen as one Gaussian.

    FD = |mu1 - mu2|² + tr S1 + tr S2 - 2 tr (S1 S2)^½,    tr (S1 S2)^½ = tr (Lᵀ S2 L)^½ for L Lᵀ = S1

(Dowson & Landau 1982; used on network features by Heusel et al. 2017, arXiv:1706.08500). S is the
covariance with divisor N - 1; the second form is of a symmetric matrix, hence never complex. FD is the
small difference of large terms, so everything here is float64. It grows as N falls: compare values of
equal N only, and never values from different features.

What is measured on a set of images: `ditkit.evaluation.statistics`; how sure one can be of the value:
`ditkit.evaluation.bootstrap`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ditkit.errors import InputError


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian of which nothing else is known, for instance one read from a file."""

    mean: Tensor
    """(D,), float64."""
    covariance: Tensor
    """(D, D), float64, divisor N - 1."""
    count: int | None = None
    """N, the number of vectors; None when it is not known."""


@dataclass(frozen=True)
class Moments:
    """What a Gaussian needs to know of a set of vectors; sets are joined by `+`, in any order.

    Streamed: `moments = moments + Moments.of(features)`.
    """

    count: int
    """N, the number of vectors."""
    mean: Tensor
    """(D,), float64."""
    scatter: Tensor
    """(D, D), float64: the sum of (f - mean)(f - mean)ᵀ."""

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """The moments of one batch (N, D) of any float dtype, on any device."""
        # On the CPU because float64 does not exist on MPS.
        rows = features.detach().cpu().double()
        mean = rows.mean(dim=0) if len(rows) else rows.new_zeros(rows.shape[1])
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        """Both sets together. Chan, Golub & LeVeque 1979: no raw sums, hence no cancellation."""
        if self.mean.shape != other.mean.shape:
            raise InputError(
                f"moments of {len(self.mean)} and of {len(other.mean)} features cannot be joined; "
                "take both from the same network"
            )
        count = self.count + other.count
        share = other.count / max(count, 1)
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + self.count * share * torch.outer(gap, gap)
        return Moments(count, self.mean + share * gap, scatter)

    @property
    def covariance(self) -> Tensor:
        """(D, D), divisor N - 1; InputError for fewer than two vectors."""
        if self.count < 2:
            raise InputError(f"a covariance needs at least 2 images, not {self.count}; give more images")
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """The Fréchet distance of two sets, symmetric, in squared units of the features; 0 is the best.

    Singular covariances are no error, but `frechet_warning` has a sentence to print beside the value.
    InputError when the numbers of features differ or a set has fewer than two vectors.
    """
    return frechet_to(b)(a)


def frechet_to(reference: Moments | Gaussian) -> Callable[[Moments | Gaussian], float]:
    """The Fréchet distance to one reference, as a function of the other set.

    What can be computed from the reference alone is computed once.
    """
    mean, covariance = reference.mean, reference.covariance
    factor = _factor(covariance)

    def distance(other: Moments | Gaussian) -> float:
        if len(other.mean) != len(mean):
            raise InputError(
                f"{len(other.mean)} features against {len(mean)}; take both from the same network"
            )
        theirs = other.covariance
        # Not the product of the covariances: it is not symmetric, and eigvalsh of it wrong without a word.
        overlap = torch.linalg.eigvalsh(factor.T @ theirs @ factor).clamp_min(0).sqrt().sum()
        value = (other.mean - mean).square().sum() + theirs.trace() + covariance.trace() - 2 * overlap
        return max(value.item(), 0.0)  # rounding can leave -1e-14 for equal sets

    return distance


def frechet_warning(a: Moments | Gaussian, b: Moments | Gaussian) -> str | None:
    """What to say beside a Fréchet distance of too few images; None when both sets are large enough or
    of unknown size."""
    dim = len(a.mean)
    least = min((side.count for side in (a, b) if side.count is not None), default=None)
    if least is None or least > dim:
        return None
    return (
        f"{least:,} images for {dim:,} features: the covariance is singular (rank <= {least - 1:,}) and "
        f"the distance says more about N than the images; use more than {dim:,} images or features of "
        "fewer dimensions"
    )


def _factor(covariance: Tensor) -> Tensor:
    """L with L Lᵀ = covariance: Cholesky's, or where that is singular, by eigenvalues (ten times slower)."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()
