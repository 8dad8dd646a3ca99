"""Kernel distances: the squared maximum mean discrepancy (MMD²) between two sets of feature vectors.

    MMD² = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)

KID (Bińkowski et al. 2018, arXiv:1801.01401): k(x, y) = (x·y / D + 1)³, pairs of an image with itself
left out, so that equal distributions give 0 in the mean (and single values below 0) whatever N is; the
mean over random subsets. Often printed times 1,000.

CMMD (Jayasumana et al. 2024, arXiv:2401.09603): k(x, y) = exp(-|x - y|² / (2·10²)) of CLIP embeddings
of length 1, all pairs counted, times 1,000.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ditkit.device import full_float32
from ditkit.errors import InputError
from ditkit.evaluation.neighbours import BLOCK, squared_distances

STRIP = 200  # rows of products at a time: of 1,000 images 0.6 of all products are computed


class KernelDistance(NamedTuple):
    mean: float
    """Over the subsets; not multiplied by 1,000."""
    std: float
    """Over the subsets (population): the spread of sets of `size` images, not the error of the mean."""
    size: int
    """Images in each subset."""


@full_float32()
def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, size: int = 1_000, seed: int = 2020
) -> KernelDistance:
    """KID of feature vectors (M, D) and (N, D), over `subsets` pairs of subsets of `size` or, where a set
    is smaller, all its images. Products in their own dtype, sums in float64.

    InputError when the numbers of features differ or a set has fewer than two vectors.
    """
    _check(a, b)
    size = min(size, len(a), len(b))
    # Differs from the rest of ditkit, whose draws are Philox: these are torch-fidelity's, in its order,
    # so that the same features give its value to the last digits.
    stream = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        x = a[torch.from_numpy(stream.choice(len(a), size, replace=False))]
        y = b[torch.from_numpy(stream.choice(len(b), size, replace=False))]
        values.append(polynomial_mmd(x, y))
    return KernelDistance(float(np.mean(values)), float(np.std(values)), size)


def polynomial_mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased MMD² of the cubic kernel between (M, D) and (N, D), M and N at least 2."""
    pairs_x, pairs_y = len(x) * (len(x) - 1), len(y) * (len(y) - 1)
    return _among(x) / pairs_x + _among(y) / pairs_y - 2 * _total(_cubic(x, y)) / (len(x) * len(y))


def cmmd(a: Tensor, b: Tensor) -> float:
    """CMMD of CLIP image embeddings (M, D) and (N, D), of any length: they are normalised here."""
    return 1000 * gaussian_mmd(F.normalize(a.double(), dim=1), F.normalize(b.double(), dim=1))


def gaussian_mmd(x: Tensor, y: Tensor, sigma: float = 10.0) -> float:
    """The biased MMD² of the kernel exp(-|x - y|² / (2 sigma²)) between (M, D) and (N, D)."""
    _check(x, y)
    return _gaussian_mean(x, x, sigma) + _gaussian_mean(y, y, sigma) - 2 * _gaussian_mean(x, y, sigma)


def _gaussian_mean(x: Tensor, y: Tensor, sigma: float) -> float:
    """The mean of the kernel over all pairs, less 1: the ones cancel, and would cost digits."""
    sums = (_total(torch.expm1(squared_distances(rows, y) / (-2 * sigma**2))) for rows in x.split(BLOCK))
    return sum(sums) / (len(x) * len(y))


def _among(x: Tensor) -> float:
    """The sum of the cubic kernel over all pairs of two of (M, D): each product once, (x, x') and (x', x) are alike."""
    total = 0.0
    for start in range(0, len(x), STRIP):
        rows, later = x[start : start + STRIP], x[start + STRIP :]
        own = _cubic(rows, rows)
        total += _total(own) - _total(own.diagonal()) + 2 * _total(_cubic(rows, later))
    return total


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    values = (x @ y.T).div_(x.shape[1]).add_(1)
    return values.square().mul_(values)


def _total(values: Tensor) -> float:
    return values.sum(dtype=torch.float64).item()


def _check(a: Tensor, b: Tensor) -> None:
    if a.shape[1] != b.shape[1]:
        raise InputError(f"{a.shape[1]} features against {b.shape[1]}; take both from the same network")
    if min(len(a), len(b)) < 2:
        raise InputError(f"a kernel distance of {len(a)} against {len(b)} images needs at least 2 each")
