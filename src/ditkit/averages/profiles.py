"""What averages weigh, and combinations of power averages that stand for others (Karras et al., "Analyzing and Improving the
Training Dynamics of Diffusion Models", 2024, sections 3.1 and 3.2, appendix C).

The profile of a power average with exponent gamma after t images is p(u) = (gamma + 1) u^gamma / t^(gamma + 1), u in [0, t]: the
weight in it of what the network was after u images. Its width is the standard deviation of p through t.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from ditkit.averages import WIDTH

LEAST, MOST = 0.001, 0.288
"""Widths: at 12^-0.5 = 0.2887 all images count alike; wider ones would count the first images most."""

Width = Annotated[float, Field(ge=LEAST, le=MOST)]


def half_life(
    batch: int,
    seen: int,
    *,
    images: Annotated[float, Field(gt=0)] = 1_774_000.0,
    rampup: Annotated[float, Field(gt=0)] | None = None,
) -> float:
    """What is older by the half-life counts half; with `rampup` that is at most this share of the images seen."""
    life = images if rampup is None else min(images, rampup * seen)
    return 1 - 0.5 ** (batch / life)


def power(batch: int, seen: int, *, width: Width = WIDTH) -> float:
    """Grows with the training: what was seen after u images counts as a power of u; its spread is `width` of all.

    Exact where weights are constant between steps, whatever the sizes of batches.
    """
    return 1 - (1 - batch / seen) ** (exponent(width) + 1)


@cache
def exponent(width: float) -> float:
    """The gamma of a profile of that width, in [`LEAST`, `MOST`].

    Variance / t² = (gamma + 1) / ((gamma + 2)² (gamma + 3)) is width², a cubic in gamma, of whose roots the largest is the one
    that is not negative.
    """
    square = width**-2
    roots = np.roots([1, 7, 16 - square, 12 - square])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-6 * abs(root)))


class Profile(NamedTuple):
    """Of a power average."""

    images: float
    """After which it was taken."""
    width: float

    def dot(self, other: Profile) -> float:
        """The integral of the product of two profiles."""
        early, late = sorted((self, other))
        a, b = exponent(early.width), exponent(late.width)
        return (a + 1) * (b + 1) / (a + b + 1) / late.images * (early.images / late.images) ** b


class Fit(NamedTuple):
    """A sum of profiles that stands for another."""

    shares: list[float]
    """Of the profiles; together 1."""
    missing: float
    """The norm of what is missing, through the norm of the profile that it stands for."""


def fit(profiles: Sequence[Profile], target: Profile) -> Fit:
    """The least squares of the sum of profiles against the target, among sums whose shares are 1 together: what does not
    change in a training is as it is in any average."""
    products = np.array([[one.dot(other) for other in profiles] for one in profiles])
    wanted = np.array([one.dot(target) for one in profiles])
    # Of profiles of norm 1, or the late ones, which are high and narrow, would decide what counts as singular.
    norms = np.sqrt(np.diag(products))
    count = len(profiles)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = products / np.outer(norms, norms)
    system[:count, count] = system[count, :count] = 1 / norms * norms.mean()
    sides = np.append(wanted / norms, norms.mean())
    solved = np.linalg.lstsq(system, sides, rcond=1e-12)[0][:count]
    shares = solved / norms
    shares /= shares.sum()
    square = target.dot(target)
    rest = square - 2 * shares @ wanted + shares @ products @ shares
    return Fit(shares.tolist(), float(np.sqrt(max(rest, 0) / square)))
