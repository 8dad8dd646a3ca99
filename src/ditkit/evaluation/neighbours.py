"""Improved precision and recall: is each image near the other set, by the other set's own measure?

Around every image of a set lies a ball that reaches to its k-th nearest neighbour in that set. Precision
is the share of samples inside any ball of the reference; recall is the share of reference images inside
any ball of the samples (Kynkäänniemi et al. 2019, arXiv:1904.06991), in ADM's form: k = 3, the image
itself not counted, squared Euclidean distances, a border belongs to its ball, sets of unequal size.

Both depend on the sizes of the sets: ADM's values are of 10,000 reference images against 50,000 samples.

Whether a sample lies on a border does not depend on how a product was rounded: |u|² - 2 u·v + |v|² bounds all
distances from below, by a product in bf16 where that is quick, otherwise in float32, and where the bounds leave a
question open, the distance is the sum of the squared differences in float64, added in the same order on every processor.

Differs: ADM computes distances in float16, which moves shares by about 0.002.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ditkit.device import full_float32, has_fast_bf16
from ditkit.errors import InputError

BLOCK = 1_000  # rows of distances in memory at a time
AT_ONCE = 2**17  # differences of features in memory at a time: 1 MB, which stays in a processor's cache
SPARE = 28  # more columns of a row than are looked for, among which all that matter nearly always are
CROWDED = 32  # open pairs per row from which a more precise product is quicker than each pair by itself


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
    precise = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for rows in pairs.blocks():
        pairs.reach(rows, real_radii, made_radii[rows], precise[rows], recalled)
    return PrecisionRecall(precise.double().mean().item(), recalled.double().mean().item())


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
    pairs = _Pairs(points, points, itself=False)
    return torch.cat([pairs.smallest(rows, k)[0].kthvalue(k).values for rows in pairs.blocks()])


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(M, N) of points (M, D) and (N, D), by one product."""
    products = torch.addmm(b.square().sum(dim=1), a, b.T, alpha=-2)
    return products.add_(a.square().sum(dim=1, keepdim=True)).clamp_min_(0)


def distances_of_pairs(a: Tensor, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(P,), float64: the squared distances of points a[rows] and b[columns], the same bits on every processor."""
    size = max(1, AT_ONCE // a.shape[1])
    found = [torch.empty(0, dtype=torch.float64, device=a.device)]
    for row, column in zip(rows.split(size), columns.split(size), strict=True):
        terms = a.index_select(0, row).double().sub_(b.index_select(0, column).double())
        terms.mul_(terms)
        while (count := terms.shape[1]) > 1:  # a tree of additions, whose order no width of vectors changes
            half = (count + 1) // 2
            terms[:, : count - half].add_(terms[:, half:])
            terms = terms[:, :half]
        found.append(terms[:, 0].clone())  # not a view, which would keep all terms in memory
    return torch.cat(found)


class _Pairs:
    """The squared distances between points (M, D) and (N, D): bounds of all of them, and values where they are needed.
    Without `itself`, between points of one set, none is its own neighbour."""

    def __init__(self, a: Tensor, b: Tensor, itself: bool = True) -> None:
        self.a, self.b, self.itself, self.centre = a, b, itself, b.mean(dim=0)
        self.precisions = [torch.bfloat16] * has_fast_bf16(a.device) + [torch.float32, torch.float64]
        self.quick_b = rounded(b, self.centre, self.precisions[0])
        self.quick_a = self.quick_b if a is b else rounded(a, self.centre, self.precisions[0])

    def blocks(self) -> Iterator[slice]:
        for start in range(0, len(self.a), BLOCK):
            yield slice(start, min(start + BLOCK, len(self.a)))

    def smallest(self, rows: slice, count: int) -> tuple[Tensor, Tensor]:
        """(R, C) distances, C at least `count`, among them the `count` smallest of each row, and their columns.

        With count = 1 also every other distance as small, but for columns after one whose distance is 0. Places that
        a row does not need are infinite.
        """
        for low, most in self._bounds(rows):
            near = low.topk(min(count + SPARE, len(self.b)), largest=False)
            guess = low.argmin(dim=1, keepdim=True) if count == 1 else near.indices[:, :count]
            row = torch.arange(len(low), device=low.device)[:, None].expand_as(guess)
            distances = self._distances(rows, row, guess)
            # What lies below the largest of any `count` distances can be among the smallest.
            limit = distances.amax(dim=1, keepdim=True).to(low.dtype)
            if bool((near.values[:, -1:] >= limit).all()):
                break
            below = (low < limit).count_nonzero(dim=1)
            if int(below.sum()) <= most:
                near = low.topk(int(below.max()), largest=False)
                break
        undecided = near.values < limit
        undecided[:, : count if count > 1 else 0] = False  # those are the guess
        row, place = undecided.nonzero(as_tuple=True)
        more = distances.new_full(undecided.shape, torch.inf)
        more[row, place] = self._distances(rows, row, near.indices[row, place])
        columns = near.indices.where(undecided, len(self.b))
        return torch.cat([distances, more], dim=1), torch.cat([guess, columns], dim=1)

    def reach(self, rows: slice, b_radii: Tensor, a_radii: Tensor, a_found: Tensor, b_found: Tensor) -> None:
        """Marks the rows, in `a_found` (R,), of which any column is as near as that column's radius in `b_radii` (N,), and
        the columns, in `b_found` (N,), of which any row is as near as that row's in `a_radii` (R,), radii squared."""

        def within_b(row: Tensor, column: Tensor) -> Tensor:
            return self._distances(rows, row, column) <= b_radii[column]

        for low, most in self._bounds(rows):
            left = (~b_found).nonzero()[:, 0]  # most columns are found by the first rows

            def within_a(place: Tensor, row: Tensor, left: Tensor = left) -> Tensor:
                return self._distances(rows, row, left[place]) <= a_radii[row]

            found = b_found[left]
            done = mark((low[:, left] - a_radii[:, None].to(low.dtype)).T, found, within_a, most)
            b_found[left] = found
            if mark(low.sub_(b_radii.to(low.dtype)), a_found, within_b, most) and done:
                return

    def _distances(self, rows: slice, row: Tensor, column: Tensor) -> Tensor:
        found = distances_of_pairs(self.a, self.b, row.flatten() + rows.start, column.flatten())
        return found.view(row.shape)

    def _bounds(self, rows: slice) -> Iterator[tuple[Tensor, float]]:
        """Lower bounds of the distances of these rows, (R, N), each time by a more precise product, and from how many open
        pairs on the next product is worth its time."""
        for dtype in self.precisions:
            if dtype == self.precisions[0]:
                a, b = self.quick_a.rows(rows), self.quick_b
            else:
                a, b = rounded(self.a[rows], self.centre, dtype), rounded(self.b, self.centre, dtype)
            low = lower_bounds(a, b)
            if not self.itself:
                low.diagonal(rows.start).fill_(torch.inf)
            yield low, torch.inf if dtype == torch.float64 else CROWDED * len(low)


def mark(gaps: Tensor, found: Tensor, inside: Callable[[Tensor, Tensor], Tensor], most: float) -> bool:
    """Marks in `found` (L,) the lines that have any pair that is `inside`; False where more than `most` pairs are open.

    `gaps` (L, K) are no more than 0 wherever a pair is inside; what is, `inside` says of pairs by line and place. First
    each line's most likely pair is looked at, which is enough for most.
    """
    least, place = gaps.min(dim=1)
    left = (~found & (least <= 0)).nonzero()[:, 0]
    found[left] = inside(left, place[left])
    left = left[~found[left]]
    pairs = gaps[left] <= 0
    if int(pairs.count_nonzero()) > most:
        return False
    line, place = pairs.nonzero(as_tuple=True)
    line = left[line]
    found[line[inside(line, place)]] = True
    return True


class Rounded(NamedTuple):
    """Points (N, D) as products read them."""

    vectors: Tensor
    """(N, D)."""
    norms: Tensor
    """(N,), squared, before the vectors were rounded to bf16."""
    lost: float
    """By which share of its length any of them was moved by that; 0 in float32 and float64."""

    def rows(self, rows: slice) -> "Rounded":
        return Rounded(self.vectors[rows], self.norms[rows], self.lost)


def rounded(points: Tensor, centre: Tensor, dtype: torch.dtype) -> Rounded:
    """Points relative to a centre, so that |u|² - 2 u·v + |v|² cancels less."""
    wide = torch.promote_types(dtype, torch.float32)
    vectors, norms = points.new_empty(points.shape, dtype=dtype), points.new_empty(len(points), dtype=wide)
    lost = 0.0
    size = max(1, AT_ONCE // points.shape[1])
    for some, part, norm in zip(points.split(size), vectors.split(size), norms.split(size), strict=True):
        exact = (some.to(torch.promote_types(some.dtype, wide)) - centre).to(wide)
        part.copy_(exact)
        torch.sum(exact.square(), dim=1, out=norm)
        if dtype != wide:
            moved = exact.sub_(part).square_().sum(dim=1) / norm
            lost = max(lost, moved.nan_to_num_(0).amax().sqrt().item())
    return Rounded(vectors, norms, lost)


def lower_bounds(a: Rounded, b: Rounded) -> Tensor:
    """Lower bounds (M, N) of the squared distances between points (M, D) and (N, D), by one product.

    A sum of D terms x, added in any order, errs by at most D e sum |x|, e half of `eps` of the sum's precision, which is
    float32 for vectors in bf16 (Higham 2002, section 3.1): as 2 |u·v| <= |u|² + |v|², |u|² - 2 u·v + |v|² errs by
    2 D e (|u|² + |v|²). 64 e (|u|² + |v|²) are room for the rounding of the points, of the bounds, of what they are
    compared with, and for terms in e².

    In bf16, vectors that were moved by p |u| and q |v| change u·v by (p + q + p q) |u| |v|, and the rounding of the
    product by half of bf16's `eps` of it, of twice which half is |u|² + |v|²; 5 % are room for products of these shares,
    none of which is above 1/256. Terms below `tiny` may be taken as 0.
    """
    precision = torch.finfo(a.norms.dtype)
    share = (a.vectors.shape[1] + 32) * precision.eps
    if a.vectors.dtype != a.norms.dtype:
        share = 1.05 * (share + a.lost + b.lost + torch.finfo(a.vectors.dtype).eps / 2)
    least = 4 * a.vectors.shape[1] * precision.tiny
    products = inner_products(a.vectors, b.vectors)
    low = torch.add((1 - share) * b.norms - least, products, alpha=-2)
    return low.add_((1 - share) * a.norms[:, None]).clamp_min_(0)


@full_float32()
def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """(M, N) of vectors (M, D) and (N, D)."""
    return a @ b.T
