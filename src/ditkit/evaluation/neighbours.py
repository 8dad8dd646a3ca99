"""Improved precision and recall: is each image near the other set, by the other set's own measure?

Around every image of a set lies a ball that reaches to its k-th nearest neighbour in that set. Precision
is the share of samples inside any ball of the reference; recall is the share of reference images inside
any ball of the samples (Kynkäänniemi et al. 2019, arXiv:1904.06991), in ADM's form: k = 3, the image
itself not counted, squared Euclidean distances, a border belongs to its ball, sets of unequal size.

Both depend on the sizes of the sets: ADM's values are of 10,000 reference images against 50,000 samples.

Whether a sample lies on a border does not depend on how a product was rounded: |u|² - 2 u·v + |v|² in float32
bounds all distances, and where the bounds leave a question open, the distance is the sum of the squared
differences in float64, added in the same order on every processor.

Differs: ADM computes distances in float16, which moves shares by about 0.002.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ditkit.errors import InputError

BLOCK = 1_000  # rows of distances in memory at a time
AT_ONCE = 2**21  # differences of features in memory at a time
CROWDED = 64  # open pairs per row from which a product in float64 is quicker than each pair by itself


class PrecisionRecall(NamedTuple):
    precision: float
    """Share of samples that look like the reference."""
    recall: float
    """Share of the reference that the samples reach."""


def precision_recall(reference: Tensor, samples: Tensor, k: int = 3) -> PrecisionRecall:
    """Of feature vectors (M, D) and (N, D); time grows with (M + N)², memory with M + N.

    InputError when the numbers of features differ, or a set has no more than k vectors.
    """
    if reference.shape[1] != samples.shape[1]:
        raise InputError(
            f"{samples.shape[1]} features against {reference.shape[1]}; take both from the same network"
        )
    if min(len(reference), len(samples)) <= k:
        raise InputError(
            f"precision and recall of {len(samples)} images against {len(reference)} need more than "
            f"k = {k} on each side; give more images"
        )
    real_radii, made_radii = squared_radii(reference, k), squared_radii(samples, k)
    pairs = _Pairs(samples, reference)
    precise, recalled = 0, torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for rows in pairs.blocks():
        in_real, in_made = pairs.within(rows, real_radii[None], made_radii[rows, None])
        precise += int(in_real.any(dim=1).sum())
        recalled |= in_made.any(dim=0)
    return PrecisionRecall(precise / len(samples), recalled.double().mean().item())


def nearest(reference: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Of feature vectors (M, D) and (N, D): for each sample the squared distance (N,), float64, to its nearest
    reference vector, and which that is (N,): the first, where several are as near."""
    pairs = _Pairs(samples, reference)
    least, places = [], []
    for rows in pairs.blocks():
        distances, columns = pairs.smallest(rows, 1)
        least.append(distances.amin(dim=1))
        places.append(columns.where(distances == least[-1][:, None], len(reference)).amin(dim=1))
    return torch.cat(least), torch.cat(places)


def authenticity(reference: Tensor, samples: Tensor) -> float:
    """The share of samples (N, D) that are not copies of training images (M, D), the whole reference.

    A sample is authentic when it is farther from its nearest training image than that one is from its own
    nearest neighbour among the others (Alaa et al. 2022, arXiv:2102.08921, section 3.3). A copy with changes that
    the features do not see counts as a copy; so does a real image that was not trained on but happens
    to lie so near: read the value beside that of held-out images. InputError for fewer than two training images.
    """
    if len(reference) < 2:
        raise InputError(f"authenticity needs at least two training images, not {len(reference)}")
    distances, places = nearest(reference, samples)
    return (distances > squared_radii(reference, 1)[places]).double().mean().item()


def squared_radii(points: Tensor, k: int) -> Tensor:
    """(N,), float64: the squared distance of each of N points (N, D) to its k-th nearest neighbour among them."""
    pairs = _Pairs(points, points)
    # Each point is its own nearest, so the k-th neighbour comes k places after the first.
    return torch.cat([pairs.smallest(rows, k + 1)[0].kthvalue(k + 1).values for rows in pairs.blocks()])


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(M, N) of points (M, D) and (N, D), by one product."""
    products = torch.addmm(b.square().sum(dim=1), a, b.T, alpha=-2)
    return products.add_(a.square().sum(dim=1, keepdim=True)).clamp_min_(0)


def distances_of_pairs(a: Tensor, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(P,), float64: the squared distances of points a[rows] and b[columns], the same bits on every processor."""
    size = max(1, AT_ONCE // a.shape[1])
    found = [torch.empty(0, dtype=torch.float64, device=a.device)]
    for row, column in zip(rows.split(size), columns.split(size), strict=True):
        terms = a[row].double().sub_(b[column]).square_()
        while (count := terms.shape[1]) > 1:  # a tree of additions, whose order no width of vectors changes
            half = (count + 1) // 2
            terms[:, : count - half].add_(terms[:, half:])
            terms = terms[:, :half]
        found.append(terms[:, 0])
    return torch.cat(found)


class _Pairs:
    """The squared distances between points (M, D) and (N, D): bounds of all of them, and values where they are needed."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b, self.centre = a, b, b.mean(dim=0)
        self.quick = self._centred(a, torch.float32), self._centred(b, torch.float32)

    def blocks(self) -> Iterator[slice]:
        for start in range(0, len(self.a), BLOCK):
            yield slice(start, min(start + BLOCK, len(self.a)))

    def smallest(self, rows: slice, count: int) -> tuple[Tensor, Tensor]:
        """(R, C) distances, C at least `count`, among them the `count` smallest of each row, and their columns.

        With count = 1 also every other distance as small, but for columns after one whose distance is 0. Places that
        a row does not need are infinite.
        """
        for bound in self._bounds(rows):
            low = bound(-1).clamp_min_(0)
            guess = low.argmin(dim=1, keepdim=True) if count == 1 else low.topk(count, largest=False).indices
            row = torch.arange(len(low), device=low.device)[:, None].expand_as(guess)
            distances = self._distances(rows, row, guess)
            # What lies below the largest of any `count` distances can be among the smallest.
            undecided = (low < distances.amax(dim=1, keepdim=True).to(low.dtype)).scatter_(1, guess, False)
            if _few(undecided):
                break
        row, column = undecided.nonzero(as_tuple=True)
        counts = row.bincount(minlength=len(guess))
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        more = distances.new_full((len(guess), int(counts.max())), torch.inf)
        columns = torch.full_like(more, len(self.b), dtype=torch.int64)
        more[row, place], columns[row, place] = self._distances(rows, row, column), column
        return torch.cat([distances, more], dim=1), torch.cat([guess, columns], dim=1)

    def within(self, rows: slice, *radii: Tensor) -> list[Tensor]:
        """For each of `radii`, squared and (1, N) or (R, 1): which of the pairs (R, N) are as near as that."""
        for bound in self._bounds(rows):
            low, high = bound(-1), bound(1)
            found = [high <= one.to(high.dtype) for one in radii]
            undecided = [(low <= one.to(low.dtype)) ^ sure for one, sure in zip(radii, found, strict=True)]
            if all(map(_few, undecided)):
                break
        for inside, pairs, squared in zip(found, undecided, radii, strict=True):
            row, column = pairs.nonzero(as_tuple=True)
            inside[row, column] = self._distances(rows, row, column) <= squared.expand_as(pairs)[row, column]
        return found

    def _distances(self, rows: slice, row: Tensor, column: Tensor) -> Tensor:
        found = distances_of_pairs(self.a, self.b, row.flatten() + rows.start, column.flatten())
        return found.view(row.shape)

    def _bounds(self, rows: slice) -> Iterator[Callable[[int], Tensor]]:
        """`bounds` of the distances of these rows: by a product in float32, then by one in float64."""
        (a, a_norms), b = self.quick
        yield bounds((a[rows], a_norms[rows]), b)
        yield bounds(self._centred(self.a[rows], torch.float64), self._centred(self.b, torch.float64))

    def _centred(self, points: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Points relative to the mean of `b`, so that |u|² - 2 u·v + |v|² cancels less, and |u|²."""
        points = points.to(torch.promote_types(points.dtype, dtype))
        points = (points - self.centre).to(dtype)
        return points, points.square().sum(dim=1)


def bounds(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Callable[[int], Tensor]:
    """Lower (-1) and upper (1) bounds, (M, N), of squared distances, by one product.

    `a` and `b` are points and their squared norms: (M, D) and (M,), (N, D) and (N,). A sum of D terms x, added in any
    order, errs by at most D e sum |x|, e half of `eps` (Higham 2002, section 3.1): as 2 |u·v| <= |u|² + |v|²,
    |u|² - 2 u·v + |v|² errs by 2 D e (|u|² + |v|²). 64 e (|u|² + |v|²) are room for the rounding of the points, of the
    bounds, of what they are compared with, and for terms in e².
    """
    (u, u_norms), (v, v_norms) = a, b
    share, least = (u.shape[1] + 32) * torch.finfo(u.dtype).eps, torch.finfo(u.dtype).tiny
    products = inner_products(u, v)

    def bound(sign: int) -> Tensor:
        scale = 1 + sign * share
        return torch.add(scale * v_norms + sign * least, products, alpha=-2).add_(scale * u_norms[:, None])

    return bound


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """(M, N) of vectors (M, D) and (N, D)."""
    return a @ b.T


def _few(pairs: Tensor) -> bool:
    return int(pairs.count_nonzero()) <= CROWDED * len(pairs)
