"""Fréchet distance between two sets of feature vectors, each seen as one Gaussian.

    FD = |mu1 - mu2|² + tr S1 + tr S2 - 2 tr (S1^½ S2 S1^½)^½

(Dowson & Landau 1982; used on network features by Heusel et al. 2017, arXiv:1706.08500). S is the
covariance with divisor N - 1. FD is the small difference of large terms, so everything here is float64.
It grows as N falls: compare values of equal N only, and never values from different features.

Which features: `ditkit.evaluation.classifier`. Which images: `ditkit.evaluation.report`.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor


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
            raise ValueError(
                f"moments of {len(self.mean)} and of {len(other.mean)} features cannot be joined or "
                "compared; take both from the same classifier"
            )
        count = self.count + other.count
        share = other.count / max(count, 1)
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + self.count * share * torch.outer(gap, gap)
        return Moments(count, self.mean + share * gap, scatter)

    @property
    def covariance(self) -> Tensor:
        """(D, D), divisor N - 1; ValueError for fewer than two vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Fréchet distance of two sets, symmetric, in squared units of the features; 0 is the best.

    Warns when a set has no more vectors than features: its covariance is then singular and the value
    says more about N than about the images. ValueError when the numbers of features differ.
    """
    dim = len(a.mean)
    if dim != len(b.mean):
        raise ValueError(f"{dim} features against {len(b.mean)}; take both from the same classifier")
    if min(a.count, b.count) <= dim:
        warnings.warn(
            f"Fréchet distance of {a.count} against {b.count} images in {dim} features: use more than "
            f"{dim} images on each side",
            stacklevel=2,
        )
    first, second = a.covariance, b.covariance
    # tr (S1 S2)^½ through a symmetric matrix, for which eigh is exact and never complex.
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + first.trace() + second.trace() - 2 * overlap
    return max(distance.item(), 0.0)  # rounding can leave -1e-14 for equal sets
