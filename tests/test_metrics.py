"""The evaluator's mathematics: published and hand-made values, other libraries, closed forms, identities."""

import hashlib
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ditkit.errors import InputError
from ditkit.evaluation import neighbours
from ditkit.evaluation.bootstrap import frechet_error, frechet_resamples, standard_error
from ditkit.evaluation.clip_score import clip_score
from ditkit.evaluation.frechet import Gaussian, Moments, frechet_distance, frechet_warning
from ditkit.evaluation.inception_score import ScoreSums, inception_score
from ditkit.evaluation.kernel import cmmd, gaussian_mmd, kernel_distance, polynomial_mmd
from ditkit.evaluation.neighbours import (
    authenticity,
    nearest,
    precision_recall,
    squared_distances,
    squared_radii,
)
from ditkit.evaluation.networks.features import Features
from ditkit.evaluation.npz import load_statistics, npz_images, npz_labels, read_statistics, save_statistics
from ditkit.evaluation.report import scores_of
from ditkit.evaluation.retrieval import distractors, fit_probe, retrieved
from ditkit.evaluation.statistics import SPLIT, Statistics, digest_of, gather, gather_all
from ditkit.randomness import generator


def sequence(count: int, dim: int, phase: float, scale: float, shift: float) -> Tensor:
    index = torch.arange(1, count * dim + 1, dtype=torch.float64)
    value = 43758.5453 * torch.sin(12.9898 * index + 78.233 * phase)
    return scale * (value - value.floor()).view(count, dim) + shift


def normal(count: int, dim: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, dim)))


# The sets of the golden values, and what the released evaluators make of them.
A, B = sequence(60, 8, 1, 1, 0), sequence(50, 8, 2, 1.1, 0.05)
LOGITS = sequence(40, 10, 3, 6, -3)
REAL, MADE = A.float(), sequence(50, 8, 2, 0.8, 0.25).float()


def test_the_golden_sets_are_the_published_ones():
    sums = [A.sum(), B.sum(), LOGITS.sum(), MADE.double().sum()]
    np.testing.assert_allclose(sums, [246.144058808, 249.465598567, 9.760893784, 266.884072], rtol=1e-8)


# Fréchet distance


def test_frechet_distance_golden():
    a, b = Moments.of(A), Moments.of(B)
    assert a.covariance.trace().item() == pytest.approx(0.6327038979, abs=1e-10)
    assert b.covariance.trace().item() == pytest.approx(0.7849835977, abs=1e-10)
    assert frechet_distance(a, b) == pytest.approx(0.190913500704828, abs=1e-13)
    assert frechet_distance(b, a) == pytest.approx(0.190913500704828, abs=1e-13)
    # ADM takes the mean of float32 features in float32 (numpy's sum); ours stays at the value above.
    means = [torch.from_numpy(x.float().numpy().mean(axis=0)).double() for x in (A, B)]
    sides = [Gaussian(m, Moments.of(x.float()).covariance) for m, x in zip(means, (A, B), strict=True)]
    assert frechet_distance(*sides) == pytest.approx(0.1909135552, abs=2e-9)
    in_float32 = frechet_distance(Moments.of(A.float()), Moments.of(B.float()))
    assert in_float32 == pytest.approx(0.190913500704828, abs=3e-9)
    # The two usual mistakes: divisor N, and eigenvalues of the product as if it were symmetric.
    biased = [Gaussian(m.mean, m.scatter / m.count) for m in (a, b)]
    assert frechet_distance(*biased) == pytest.approx(0.1896758309, abs=1e-10)
    roots = torch.linalg.eigvalsh(a.covariance @ b.covariance).clamp_min(0).sqrt().sum()
    wrong = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * roots
    assert wrong.item() == pytest.approx(0.1867556345, abs=1e-9)


def test_frechet_distance_of_fewer_images_than_features():
    few = Moments.of(A[:6]), Moments.of(B[:6])
    assert frechet_distance(*few) == pytest.approx(0.78207088, abs=2e-8)
    warning = frechet_warning(*few)
    assert warning is not None
    assert "6 images for 8 features: the covariance is singular (rank <= 5)" in warning
    assert frechet_warning(Moments.of(A), Gaussian(A.mean(dim=0), torch.eye(8))) is None
    assert frechet_warning(Moments.of(A[:8]), Moments.of(B)) is not None
    assert frechet_warning(Moments.of(A[:9]), Moments.of(B)) is None
    many = Gaussian(torch.zeros(1280), torch.eye(1280), 1000)
    assert "1,000 images for 1,280" in str(frechet_warning(many, replace(many, count=9999)))


def test_frechet_distance_against_a_dense_root():
    a, b = normal(300, 20, 1), normal(200, 20, 2) @ normal(20, 20, 3)
    first, second = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    gap = (a.mean(dim=0) - b.mean(dim=0)).numpy()
    expected = gap @ gap + np.trace(first + second - 2 * root)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_known_gaussians():
    spread = torch.tensor([4.0, 9.0, 0.25], dtype=torch.float64)
    turn = torch.linalg.qr(normal(3, 3, 0))[0]
    a = Gaussian(torch.zeros(3).double(), turn @ spread.diag() @ turn.T)
    b = Gaussian(torch.tensor([1.0, -2.0, 0.5]).double(), turn @ (16 * spread).diag() @ turn.T)
    assert frechet_distance(a, b) == pytest.approx(5.25 + 9 * 13.25, rel=1e-12)


def test_frechet_distance_falls_like_one_over_n():
    """Of N samples of N(0, 1) itself: E FD = E |mean|² + E |S^½ - 1|² = (D + D (D + 1) / 4) / N, where
    S^½ - 1 is (S - 1) / 2 to first order, and S has variance 2/N on its diagonal and 1/N beside it."""
    dim, counts = 6, (50, 200, 800)
    truth = Gaussian(torch.zeros(dim).double(), torch.eye(dim).double())
    for count in counts:
        values = [frechet_distance(Moments.of(normal(count, dim, seed)), truth) for seed in range(200)]
        expected = (dim + dim * (dim + 1) / 4) / count
        assert np.mean(values) == pytest.approx(expected, rel=0.12)


# Inception Score


def test_inception_score_golden():
    assert inception_score(ScoreSums.of(LOGITS)).mean == pytest.approx(2.1024861933482, abs=1e-12)
    assert inception_score(ScoreSums.of(LOGITS)).std == 0
    by_16 = inception_score(ScoreSums.of(LOGITS, size=16))
    assert by_16.mean == pytest.approx(2.0038213881143, abs=1e-12)
    by_4 = inception_score(ScoreSums.of(LOGITS, size=4))
    assert by_4 == pytest.approx((1.6498898441, 0.1949037355), abs=1e-9)


def test_inception_score_of_perfect_and_of_constant_readings():
    sure = 1e4 * torch.eye(7).repeat(3, 1)  # probabilities that are 0 to the last bit: no NaN
    assert inception_score(ScoreSums.of(sure)).mean == pytest.approx(7, rel=1e-12)
    assert inception_score(ScoreSums.of(LOGITS[:1].repeat(9, 1))).mean == pytest.approx(1, rel=1e-12)
    with pytest.raises(InputError, match="of 0 images"):
        inception_score(ScoreSums.of(LOGITS[:0]))


def test_inception_score_of_parts():
    parts = [ScoreSums.of(LOGITS[a:b], first=a, size=16) for a, b in ((30, 40), (0, 5), (5, 30))]
    joined = parts[0] + parts[1] + parts[2]
    assert joined.count.tolist() == [16, 16, 8]
    assert inception_score(joined) == pytest.approx(inception_score(ScoreSums.of(LOGITS, size=16)), rel=1e-12)
    with pytest.raises(InputError, match="10 and of 4 classes"):
        ScoreSums.of(LOGITS) + ScoreSums.of(LOGITS[:, :4])


# Precision and recall


@pytest.mark.parametrize(
    ("k", "precision", "recall"), [(3, 0.9, 0.6166667), (2, 0.78, 0.5667), (4, 0.94, 0.7333)]
)
def test_precision_and_recall_golden(k: int, precision: float, recall: float):
    assert precision_recall(REAL, MADE, k) == pytest.approx((precision, recall), abs=5e-5)
    assert precision_recall(MADE, REAL, k) == pytest.approx((recall, precision), abs=5e-5)


def test_radii_golden():
    radii = squared_radii(REAL, 3)[:3], squared_radii(MADE, 3)[:3]
    np.testing.assert_allclose(radii[0], [0.3505216, 0.4813669, 0.4873278], atol=1e-6)
    np.testing.assert_allclose(radii[1], [0.3469467, 0.3630419, 0.4172573], atol=1e-6)


def test_precision_and_recall_against_scikit_learn():
    real, made = normal(1500, 5, 1), 0.8 * normal(1100, 5, 2) + 0.3  # more than a block of each

    def inside(points: Tensor, balls: Tensor) -> float:
        near = NearestNeighbors(n_neighbors=4).fit(balls.numpy())
        radii = near.kneighbors(balls.numpy())[0][:, 3]
        gaps = np.linalg.norm(points.numpy()[:, None] - balls.numpy()[None], axis=2)
        return (gaps <= radii).any(axis=1).mean()

    expected = inside(made, real), inside(real, made)
    assert precision_recall(real, made) == pytest.approx(expected, abs=1e-12)
    assert 0.2 < expected[1] < expected[0] < 1
    far_away = precision_recall(real + 1000, made + 1000)  # what centring is for
    assert far_away == pytest.approx(expected, abs=1e-12)


def test_precision_and_recall_of_equal_sets_and_of_copies():
    assert precision_recall(REAL, REAL) == (1, 1)
    assert precision_recall(REAL, REAL + 100) == (0, 0)
    # Ten images by heart, many times: all precise, and balls of radius 0 that reach nothing else.
    assert precision_recall(REAL, REAL[:10].repeat(5, 1)) == pytest.approx((1, 10 / 60))


def test_precision_and_recall_of_unfit_sets():
    with pytest.raises(InputError, match="8 features against 4"):
        precision_recall(REAL[:, :4], MADE)
    with pytest.raises(InputError, match="3 images against 60 need more than k = 3"):
        precision_recall(REAL, MADE[:3])


# Borders: what belongs to a ball does not depend on how a product was rounded


def misrounded(a: Tensor, b: Tensor, seed: int) -> Tensor:
    """Inner products that err by as much as an order of summation, for bf16 in float32, can make them."""
    wide = torch.promote_types(a.dtype, torch.float32)
    signs = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (len(a), len(b)))).to(wide)
    u, v = a.to(wide), b.to(wide)
    return (u @ v.T + a.shape[1] * torch.finfo(wide).eps / 2 * signs * (u.abs() @ v.abs().T)).to(a.dtype)


def by_integers(reference: Tensor, samples: Tensor, k: int):
    """Precision, recall, the nearest (distance and place) and authenticity of integer points, without rounding."""
    real, made = (points.double().numpy().astype(np.int64) for points in (reference, samples))

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a[:, None] - b[None]) ** 2).sum(axis=2)

    def radii(points: np.ndarray, k: int) -> np.ndarray:
        return np.sort(squared(points, points), axis=1)[:, k]

    gaps = squared(made, real)
    shares = (gaps <= radii(real, k)).any(axis=1).mean(), (gaps <= radii(made, k)[:, None]).any(axis=0).mean()
    places, least = gaps.argmin(axis=1), gaps.min(axis=1)
    return shares, least, places, (least > radii(real, 1)[places]).mean()


@pytest.fixture(params=[False, True], ids=["float32", "bf16"])
def bf16(request, monkeypatch) -> bool:
    """With first bounds by products in float32, and in bf16, whatever is quick here."""
    monkeypatch.setattr(neighbours, "has_fast_bf16", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dim", [1, 3, 40])
def test_borders_do_not_depend_on_the_rounding_of_a_product(monkeypatch, seed: int, dim: int, bf16: bool):
    """Points of a coarse lattice, far from the origin: most neighbours tie, and most samples lie on borders."""
    stream = np.random.default_rng(seed)
    spread = 30 if dim == 1 else 2
    real, made = (
        torch.from_numpy(stream.integers(0, spread, (count, dim)) + 1001).float() for count in (150, 120)
    )
    monkeypatch.setattr(neighbours, "inner_products", lambda a, b: misrounded(a, b, seed))
    monkeypatch.setattr(neighbours, "BLOCK", 64)
    for scale in (1.0, 2.0**-9, 2.0**9):
        shares, least, places, share = by_integers(real, made, 3)
        assert precision_recall(scale * real, scale * made) == pytest.approx(shares, abs=1e-12)
        found = nearest(scale * real, scale * made)
        assert found[1].tolist() == places.tolist()
        assert (found[0] / scale**2).tolist() == least.tolist()
        assert authenticity(scale * real, scale * made) == pytest.approx(share, abs=1e-12)
        real, made = (points[torch.from_numpy(stream.permutation(len(points)))] for points in (real, made))


def plain_squares(a: Tensor, b: Tensor) -> list[list[float]]:
    """Squared distances in float64, one difference after another."""
    return [[sum((x - y) ** 2 for x, y in zip(u, v, strict=True)) for v in b.tolist()] for u in a.tolist()]


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e15, 1e-15])
@pytest.mark.parametrize("counts", [(70, 45), (33, 97), (5, 4)])
def test_precision_and_recall_are_those_of_a_plain_loop(
    monkeypatch, spread: float, counts: tuple[int, int], bf16: bool
):
    """Clusters around few centres, a copy, one far point: near and far, with large norms and small."""
    centres = 3 * normal(4, 7, 9)
    real, made = (
        (
            spread * (centres[torch.arange(n) % 4] + normal(n, 7, n) * torch.tensor([1.0, 1e-3] * 4)[:7])
        ).float()
        for n in counts
    )
    made[0], made[-1] = real[0], 40 * made[-1]
    monkeypatch.setattr(neighbours, "BLOCK", 16)

    def radii(points: Tensor, k: int) -> list[float]:
        return [sorted(row)[k] for row in plain_squares(points, points)]

    gaps, real_radii, made_radii = plain_squares(made, real), radii(real, 3), radii(made, 3)
    inside = [any(gap <= radius for gap, radius in zip(row, real_radii, strict=True)) for row in gaps]
    reached = [
        any(gap <= radius for gap, radius in zip(column, made_radii, strict=True))
        for column in zip(*gaps, strict=True)
    ]
    assert precision_recall(real, made) == (sum(inside) / len(made), sum(reached) / len(real))
    assert squared_radii(real, 3).tolist() == pytest.approx(real_radii, rel=1e-12)
    least = [min(row) for row in gaps]
    distances, places = nearest(real, made)
    assert distances.tolist() == pytest.approx(least, rel=1e-12)
    assert places.tolist() == [row.index(one) for row, one in zip(gaps, least, strict=True)]


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 40, 300), (40, 1, 300), (1, 9, 5000), (33, 65, 2048), (3, 5, 2)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bounds_are_below_all_distances_and_near_them(shape: tuple[int, int, int], dtype: torch.dtype):
    rows, columns, dim = shape
    a, b = normal(rows, dim, 1).exp().float(), 2 * normal(columns, dim, 2).float()
    exact = torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    sides = [neighbours.rounded(points, b.mean(dim=0), dtype) for points in (a, b)]
    low = neighbours.lower_bounds(*sides)
    assert low.dtype == torch.float32
    assert (low <= exact).all()
    norms = sides[0].norms[:, None] + sides[1].norms
    assert (exact - low <= (0.026 if dtype == torch.bfloat16 else 2e-3) * norms).all()


def test_a_generator_that_makes_one_image_is_scored_as_quickly_as_another(monkeypatch, bf16: bool):
    """All pairs lie on a border; few of them are taken one by one."""
    counted = []
    exact = neighbours.distances_of_pairs
    monkeypatch.setattr(
        neighbours, "distances_of_pairs", lambda a, b, *at: counted.append(len(at[0])) or exact(a, b, *at)
    )
    real, one = normal(500, 32, 0).float(), normal(1, 32, 1).float()
    assert squared_radii(one.repeat(500, 1), 3).tolist() == [0] * 500
    clusters = real[:5].repeat(100, 1)
    assert squared_radii(clusters, 3).tolist() == [0] * 500
    nudged = (
        clusters + 1e-6 * normal(500, 32, 2).float()
    )  # nearer to each other than a product in float32 can tell
    gaps = torch.cdist(nudged.double(), nudged.double(), compute_mode="donot_use_mm_for_euclid_dist")
    expected = gaps.square().sort(dim=1).values[:, 3]
    torch.testing.assert_close(squared_radii(nudged, 3), expected, rtol=1e-6, atol=0)
    assert precision_recall(real, one.repeat(500, 1)).recall <= 0.01
    assert sum(counted) < 30 * 500


# Kernel distances


def test_kernel_distance_golden():
    assert polynomial_mmd(A[:50], B) == pytest.approx(0.109610353107, abs=1e-11)
    assert np.random.RandomState(2020).choice(60, 20, replace=False)[:5].tolist() == [39, 37, 34, 33, 25]
    found = kernel_distance(A, B, subsets=10, size=20)
    assert found == pytest.approx((0.1323235839, 0.0512159817, 20), abs=1e-10)
    assert kernel_distance(A.float(), B.float(), subsets=10, size=20).mean == pytest.approx(
        0.1323235839, abs=1e-6
    )


def test_kernel_distance_of_all_images_where_they_are_few():
    found = kernel_distance(A[:50], B, subsets=3)
    assert found.size == 50
    assert found.mean == pytest.approx(0.109610353107, abs=1e-11)
    assert found.std < 1e-12


def test_kernel_distance_is_unbiased():
    values = [polynomial_mmd(normal(30, 4, seed), normal(20, 4, 1000 + seed)) for seed in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0


def test_cmmd_golden():
    assert cmmd(A, B) == pytest.approx(0.1236581434, abs=1e-9)
    assert cmmd(3 * A, 0.5 * B) == pytest.approx(0.1236581434, abs=1e-9)
    assert 1000 * gaussian_mmd(A, B) == pytest.approx(1.3609977074, abs=1e-9)
    big = torch.cat([A] * 40)  # blocks, and the identity of the biased form under repetition
    assert cmmd(big, B) == pytest.approx(0.1236581434, abs=1e-9)


def test_squared_distances_are_those():
    np.testing.assert_allclose(squared_distances(A, B), torch.cdist(A, B).square(), atol=1e-12)


def test_kernel_distances_of_unfit_sets():
    for distance in kernel_distance, cmmd:
        with pytest.raises(InputError, match="8 features against 4"):
            distance(A, B[:, :4])
        with pytest.raises(InputError, match="at least 2 each"):
            distance(A, B[:1])


def test_clip_score():
    images, texts = torch.eye(3), torch.tensor([[2.0, 0, 0], [0, -1, 0], [3, 0, 4]])
    assert clip_score(images, texts) == pytest.approx(100 * (1 - 1 + 0.8) / 3)
    assert clip_score(images, -images) == pytest.approx(-100)
    with pytest.raises(InputError, match="each image its prompt"):
        clip_score(images, texts[:2])


# Standard errors


# A set that differs, and one as good as the truth, for which the error is known to be sqrt(3) too large.
@pytest.mark.parametrize(("shift", "scale", "ratio"), [(0.3, 1.2, 1.0), (0.0, 1.0, 3**0.5)])
def test_frechet_error_is_the_spread_of_fresh_draws(shift: float, scale: float, ratio: float):
    count, dim = 300, 4
    truth = Gaussian(torch.zeros(dim).double(), torch.eye(dim).double())
    draws = [scale * normal(count, dim, seed) + shift for seed in range(300)]
    spread = np.std([frechet_distance(Moments.of(rows), truth) for rows in draws])
    errors = [frechet_error(rows, truth) for rows in draws[:20]]
    assert np.mean(errors) == pytest.approx(ratio * spread, rel=0.2)


def test_frechet_resamples_are_those_of_repeated_rows():
    truth = Moments.of(A)
    found = frechet_resamples(B, truth, resamples=2, seed=5)
    assert found.shape == (2,)
    assert found[0] != found[1]
    drawn = torch.from_numpy(generator(5, 1, "bootstrap").integers(50, size=50))
    expected = frechet_distance(Moments.of(B[drawn]), truth)
    assert found[1].item() == pytest.approx(expected, rel=1e-10)


def test_runs_of_equal_size_are_resampled_alike():
    truth = Moments.of(normal(2000, 4, 0))
    ours = normal(500, 4, 1) + 0.5
    theirs = ours + 0.01  # the same but for a constant: their difference is known far better than either
    paired = (frechet_resamples(theirs, truth) - frechet_resamples(ours, truth)).std()
    assert paired < 0.1 * frechet_error(ours, truth)


def test_standard_error_of_a_share():
    right = torch.arange(400) % 10 != 0
    error = standard_error(lambda rows: right[rows].double().mean().item(), 400, resamples=500)
    assert error == pytest.approx((0.9 * 0.1 / 400) ** 0.5, rel=0.1)


def test_standard_error_of_recall_is_the_spread_of_fresh_draws():
    real = normal(400, 3, 0)
    draws = [0.7 * normal(400, 3, seed) for seed in range(1, 41)]
    spread = np.std([precision_recall(real, made).recall for made in draws], ddof=1)
    errors = [
        standard_error(lambda rows, made=made: precision_recall(real, made[rows]).recall, 400, resamples=20)
        for made in draws[:8]
    ]
    assert np.mean(errors) == pytest.approx(spread, rel=0.35)


def test_too_few_images_to_resample():
    with pytest.raises(InputError, match="1 images cannot be resampled"):
        frechet_error(A[:1], Moments.of(B))
    with pytest.raises(InputError, match="3 images cannot be halved"):
        standard_error(lambda rows: 0.0, 3)


# Statistics of a set


@dataclass
class Sums:
    """A feature network of this file's own: fixed combinations of the pixels of (1, 2, 3) images."""

    name: str = "sums"
    hash: str = "ab" * 32
    dim: int = 4
    resize: str = "none"
    classes: int | None = None

    def __call__(self, images: Tensor) -> Features:
        pixels = images.flatten(1).double() / 255  # (N, 6)
        mixed = pixels @ sequence(6, 11, 7, 2, -1)
        return Features(mixed[:, :4].float(), mixed[:, 4:7].float(), mixed[:, 7:].float())


@dataclass
class Reader(Sums):
    """Reads an image as the class that its first pixel names."""

    classes: int | None = 3

    def __call__(self, images: Tensor) -> Features:
        logits = torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 3).float()
        return Features(logits @ sequence(3, 4, 8, 1, 0).float(), logits)


def pictures(count: int, seed: int = 0) -> Tensor:
    pixels = np.random.default_rng(seed).integers(256, size=(count, 1, 2, 3), dtype=np.uint8)
    return torch.from_numpy(pixels)


def batches(images: Tensor, size: int, labels: Tensor | None = None):
    for start in range(0, len(images), size):
        yield (
            images[start : start + size],
            None if labels is None else labels[start : start + size],
        )


def assert_same(a: Statistics, b: Statistics, rtol: float) -> None:
    assert (a.network, a.network_hash, a.resize, a.digest) == (b.network, b.network_hash, b.resize, b.digest)
    assert (a.count, a.keep) == (b.count, b.keep)
    assert torch.equal(a.rows, b.rows)
    assert torch.equal(a.index, b.index)
    pairs = [(a.moments, b.moments), (a.spatial, b.spatial)]
    for ours, theirs in pairs:
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours.mean, theirs.mean, rtol=rtol, atol=0)
            torch.testing.assert_close(ours.covariance, theirs.covariance, rtol=rtol, atol=rtol)
    assert (a.scores is None) == (b.scores is None)
    if a.scores is not None and b.scores is not None:
        assert torch.equal(a.scores.split, b.scores.split)
        assert torch.equal(a.scores.count, b.scores.count)
        torch.testing.assert_close(a.scores.probability, b.scores.probability, rtol=rtol, atol=0)
        torch.testing.assert_close(a.scores.negentropy, b.scores.negentropy, rtol=rtol, atol=0)
    for ours, theirs in [(a.confusion, b.confusion), (a.read, b.read)]:
        assert ours is theirs is None or torch.equal(ours, theirs)


def test_statistics_are_those_of_the_features():
    images, network = pictures(300), Sums()
    features, found = network(images), gather(batches(images, 64), network)
    assert found.count == 300
    assert torch.equal(found.rows, features.pooled)
    assert found.index.tolist() == list(range(300))
    assert found.spatial is not None
    assert found.scores is not None
    for moments, values in [(found.moments, features.pooled), (found.spatial, features.spatial)]:
        np.testing.assert_allclose(moments.mean, values.double().mean(dim=0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance, np.cov(values.double(), rowvar=False), rtol=1e-10)
    assert inception_score(found.scores).mean == inception_score(ScoreSums.of(features.logits)).mean
    assert found.confusion is found.read is None


def test_batches_change_nothing_and_parts_only_rounding():
    images, labels = pictures(SPLIT + 2300), torch.arange(SPLIT + 2300) % 3
    images[:, 0, 0, 0] %= 3
    both = gather_all(batches(images, 800, labels), [Sums(), Reader()], keep=700)
    for network, in_one_pass in zip((Sums(), Reader()), both, strict=True):
        whole = gather(batches(images, 1000, labels), network, keep=700)
        assert_same(in_one_pass, whole, rtol=0)
        assert_same(gather(batches(images, 999, labels), network, keep=700), whole, rtol=0)
        assert_same(gather(iter([(images, labels)]), network, keep=700), whole, rtol=0)
        ends = [0, 10, 10, 3000, SPLIT + 1, len(images)]  # ranks of any shares, one without images
        parts = [
            gather(batches(images[a:b], 500, labels[a:b]), network, first=a, keep=700)
            for a, b in pairwise(ends)
        ]
        for order in (0, 1, 2, 3, 4), (4, 1, 3, 0, 2):
            first, *others = (parts[place] for place in order)
            assert_same(sum(others, first), whole, rtol=1e-10)


def test_rows_are_kept_by_index_alone():
    found = gather(batches(pictures(4000), 500), Sums(), keep=1000)
    assert len(found.rows) == len(found.index) == 1000
    assert torch.equal(found.index, found.index.sort().values)
    assert torch.equal(found.rows, Sums()(pictures(4000)[found.index]).pooled)
    # As good as random: neither the start, nor a class, nor a stretch is preferred (3 sigma).
    for period in 2, 3, 10:
        assert (found.index % period).bincount().float() == pytest.approx(1000 / period, abs=80 / period**0.5)
    assert found.index.double().mean() == pytest.approx(2000, abs=3 * 1000 / 3**0.5 / 1000**0.5 * 2)


def test_the_digest_names_the_images_whatever_their_order():
    images = pictures(200)
    digest = gather(batches(images, 64), Sums()).digest
    assert len(digest) == 64
    assert gather(batches(images.flip(0), 33), Sums()).digest == digest
    assert gather(batches(images[:199], 64), Sums()).digest != digest
    assert gather(batches(torch.cat([images, images[:1]]), 64), Sums()).digest != digest
    other = images.clone()
    other[7, 0, 1, 2] ^= 1
    assert gather(batches(other, 64), Sums()).digest != digest
    assert digest_of(images[0]) != digest_of(images[0].view(1, 3, 2))
    one = gather(batches(images[:1], 1), Sums())
    assert one.digest == digest_of(images[0]).hex()
    assert one.digest == hashlib.sha256(b"1 2 3 " + images[0].numpy().tobytes()).hexdigest()


def test_labels_are_counted():
    images = torch.tensor([0, 0, 1, 1, 1, 0], dtype=torch.uint8).view(6, 1, 1, 1)
    labels = torch.tensor([0, 0, 0, 1, 1, 0])
    found = gather(batches(images, 4, labels), Reader())
    assert found.confusion is not None
    assert found.read is not None
    assert found.confusion.tolist() == [[3, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert found.read.tolist() == [3, 3, 0]
    without = gather(batches(images, 4), Reader())
    assert without.confusion is not None
    assert without.confusion.sum() == 0
    assert without.read is not None
    assert without.read.tolist() == [3, 3, 0]
    assert gather([(images, torch.full((6,), 999))], Sums1x1()).confusion is None


class Sums1x1(Sums):
    """For images of one pixel: labels are nothing it reads."""

    def __call__(self, images: Tensor) -> Features:
        return Features(images.flatten(1).float().expand(-1, 4))


def test_wrong_labels_and_features_are_input_errors():
    images = torch.tensor([0, 1], dtype=torch.uint8).view(2, 1, 1, 1)
    with pytest.raises(InputError, match="labels from 0 to 3, but sums knows 0 to 2"):
        gather([(images, torch.tensor([0, 3]))], Reader())
    with pytest.raises(InputError, match="labels from -1 to 2"):
        gather([(images, torch.tensor([-1, 2]))], Reader())
    with pytest.raises(InputError, match="2 images need as many labels"):
        gather([(images, torch.tensor([0]))], Reader())
    for some in [(images, torch.tensor([0, 1])), (images, None)], [(images, None), (images, torch.ones(2))]:
        with pytest.raises(InputError, match="only 2 of 4 images carry a label"):
            gather(some, Reader())
    labelled = gather([(images, torch.tensor([0, 1]))], Reader())
    with pytest.raises(InputError, match="only 2 of 4"):
        labelled + gather([(images, None)], Reader(), first=2)

    class Broken(Sums):
        def __call__(self, images: Tensor) -> Features:
            return Features(torch.full((len(images), 4), float("nan")))

    with pytest.raises(InputError, match="pooled features of sums are not finite"):
        gather([(images, None)], Broken())


def test_parts_that_do_not_fit_are_input_errors():
    part = gather(batches(pictures(10), 5), Sums())
    for other in Sums(name="other"), Sums(hash="cd" * 32), Sums(resize="bilinear"):
        with pytest.raises(InputError, match="gather both with the same network"):
            part + gather(batches(pictures(10), 5), other, first=10)
    with pytest.raises(InputError, match="both parts have an image 9"):
        part + gather(batches(pictures(10), 5), Sums(), first=9)
    with pytest.raises(InputError, match="unknown images cannot be joined"):
        part + replace(part, moments=Gaussian(part.moments.mean, part.moments.covariance))


def test_no_images_are_an_empty_part_and_no_gaussian():
    empty = gather([], Reader())
    assert empty.count == 0
    assert empty.digest == "0" * 64
    with pytest.raises(InputError, match="at least 2 images, not 0"):
        _ = empty.moments.covariance


# Files of statistics


@pytest.mark.parametrize("network", [Sums(), Reader()])
def test_statistics_saved_and_loaded_are_the_same(network, tmp_path):
    images = pictures(500)
    images[:, 0, 0, 0] %= 3
    whole = gather(batches(images[:300], 64, torch.arange(300) % 3), network, keep=100)
    path = tmp_path / "new" / "reference"  # the name stays as it is
    save_statistics(path, whole)
    assert_same(load_statistics(path), whole, rtol=1e-13)
    assert_same(read_statistics(path, network), whole, rtol=1e-13)
    rest = gather(batches(images[300:], 64, torch.ones(200).long()), network, first=300, keep=100)
    assert_same(load_statistics(path) + rest, whole + rest, rtol=1e-12)
    with np.load(path, allow_pickle=False) as file:  # as any other tool would read it
        np.testing.assert_array_equal(file["sigma"], whole.moments.covariance)


def adm_file(path, images: Tensor, **changes) -> dict[str, np.ndarray]:
    """A reference batch as ADM has it: some images, and Gaussians of others."""
    mean, spatial = np.arange(4.0), np.arange(5.0)
    arrays = {"arr_0": images.permute(0, 2, 3, 1).numpy(), "mu": mean, "sigma": np.eye(4)}
    arrays |= {"mu_s": spatial, "sigma_s": 2 * np.eye(5)}
    arrays |= changes
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    return arrays


def test_a_file_of_adm(tmp_path):
    path, images = tmp_path / "VIRTUAL.npz", pictures(150)
    adm_file(path, images)
    found, direct = read_statistics(path, Sums()), gather([(images, None)], Sums())
    assert found.count is None
    assert found.moments.mean.tolist() == [0, 1, 2, 3]
    assert found.spatial is not None
    assert found.spatial.covariance.diagonal().tolist() == [2] * 5
    assert torch.equal(found.rows, direct.rows)
    assert found.scores is not None
    assert found.scores.count.tolist() == [150]
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert frechet_warning(found.moments, direct.moments) is None
    save_statistics(tmp_path / "kept.npz", found)  # so that the network need not read it again
    assert_same(load_statistics(tmp_path / "kept.npz"), found, rtol=0)


def test_a_file_of_images_alone_and_one_of_a_gaussian_alone(tmp_path):
    path, images = tmp_path / "samples.npz", pictures(150)
    adm_file(path, images, mu=None, sigma=None)
    assert_same(read_statistics(path, Sums()), gather([(images, None)], Sums()), rtol=0)
    assert torch.equal(torch.cat([some for some, _ in npz_images(path)]), images)
    assert npz_labels(path) is None
    for name in "labels", "arr_1":
        adm_file(path, images, **{name: np.arange(150) % 3})
        found = [labels for _, labels in npz_images(path) if labels is not None]
        assert torch.cat(found).tolist() == [k % 3 for k in range(150)]
    adm_file(path, images, labels=np.zeros(150))
    with pytest.raises(InputError, match="labels is float64"):
        npz_labels(path)
    np.savez(path, mu=np.arange(4.0, dtype=np.float32), sigma=np.eye(4, dtype=np.float32))
    found = read_statistics(path, Sums())
    assert found.count is found.spatial is None
    assert found.rows.shape == (0, 4)
    assert found.moments.covariance.dtype == torch.float64
    direct = gather([(images, None)], Sums())
    assert frechet_distance(direct.moments, found.moments) > 0
    with pytest.raises(InputError, match="150 images against 0 need more"):
        precision_recall(found.rows, direct.rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": None}, "no array sigma"),
        ({"sigma_s": None}, "no array sigma_s"),
        ({"sigma": np.eye(4) + np.eye(4, k=1)}, "sigma is not symmetric"),
        ({"sigma": np.full((4, 4), np.nan)}, "mu or sigma is not finite"),
        ({"mu": np.array([0, 1, 2, np.inf])}, "mu or sigma is not finite"),
        ({"sigma": np.eye(5)}, r"mu \(4,\) and sigma \(5, 5\) are no mean"),
        ({"mu": np.zeros(6), "sigma": np.eye(6)}, "mu has 6 features, sums has 4"),
        ({"mu": np.array([None] * 4)}, "not a readable .npz file"),
        ({"arr_0": np.zeros((3, 2, 3, 1))}, "arr_0 is float64"),
        ({"arr_0": np.zeros((3, 2), dtype=np.uint8)}, "arr_0 is uint8"),
        ({"arr_0": np.array([None, {}])}, "arr_0 is object"),
        ({"arr_0": None, "mu": None}, "neither statistics"),
    ],
)
def test_unfit_files_are_one_line(changes: dict, message: str, tmp_path):
    path = tmp_path / "VIRTUAL.npz"
    adm_file(path, pictures(3), **changes)
    with pytest.raises(InputError, match=message) as error:
        read_statistics(path, Sums())
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_files_are_one_line(tmp_path):
    path = tmp_path / "reference.npz"
    adm_file(path, pictures(100))
    whole = path.read_bytes()
    broken = {
        "cut": whole[:-40],
        "empty": b"",
        "text": b"mu, sigma",
        "pickled": b"\x80\x04\x95" + b"0" * 50,
        "damaged": whole[:400] + bytes(99) + whole[499:],
    }
    for name, content in broken.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a readable") as error:
            read_statistics(path, Sums())
        assert "\n" not in str(error.value), name
    with open(path, "wb") as file:
        np.save(file, np.eye(4))
    with pytest.raises(InputError, match="not a readable"):
        read_statistics(path, Sums())
    with pytest.raises(InputError, match="no such file"):
        read_statistics(tmp_path / "none.npz", Sums())
    with pytest.raises(InputError, match="not a readable"):
        read_statistics(tmp_path, Sums())


def test_statistics_of_another_network_are_refused(tmp_path):
    path = tmp_path / "reference.npz"
    save_statistics(path, gather(batches(pictures(20), 5), Sums()))
    for other in Sums(name="other"), Sums(hash="cd" * 32), Sums(resize="bilinear"):
        with pytest.raises(InputError, match=r"reference.npz .*gather both with the same network"):
            read_statistics(path, other)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{name: values for name, values in arrays.items() if name != "digest"})
    with pytest.raises(InputError, match="no array digest"):
        load_statistics(path)
    np.savez(path, **{**arrays, "rows": arrays["rows"][:, :2]})
    with pytest.raises(InputError, match=r"rows \(20, 2\)"):
        load_statistics(path)
    with pytest.raises(InputError, match="at least 2 images, not 1"):
        save_statistics(path, gather(batches(pictures(1), 5), Sums()))


# --- copies of training images --------------------------------------------------------------------------


def test_authenticity_by_hand():
    training = torch.tensor([[0.0], [1.0], [3.0]])  # their nearest neighbours are 1, 1 and 2 away
    samples = torch.tensor([[0.5], [-1.0], [-1.5], [4.9], [5.1], [3.0]])
    #                        copy    border (a copy)  authentic  copy  authentic  copy
    assert authenticity(training, samples) == pytest.approx(2 / 6)
    distances, places = nearest(training, samples)
    assert places.tolist() == [0, 0, 0, 2, 2, 2]  # the first is as near to the second
    exact = torch.tensor([0.25, 1, 2.25, 3.61, 4.41, 0], dtype=torch.float64)
    torch.testing.assert_close(distances, exact, rtol=1e-6, atol=0)
    with pytest.raises(InputError, match="at least two"):
        authenticity(training[:1], samples)


def test_real_images_of_the_same_kind_are_authentic_about_half_the_time():
    # Exchangeable points: a new one and the neighbour of the nearest are equally likely to be nearer to that one.
    stream = torch.Generator().manual_seed(0)
    training, new = (torch.randn(2000, 8, generator=stream) for _ in range(2))
    assert authenticity(training, new) == pytest.approx(0.5, abs=0.08)


def test_authenticity_needs_all_of_the_reference():
    reference, samples = (gather([(pictures(40, seed), None)], Sums()) for seed in (0, 1))
    part = gather([(pictures(40, 0), None)], Sums(), keep=30)
    found = scores_of(samples, reference, "all").authenticity
    assert found == pytest.approx(authenticity(reference.rows, samples.rows))
    assert scores_of(samples, part, "some").authenticity is None


# --- caption retrieval ----------------------------------------------------------------------------------


def test_a_probe_recovers_a_linear_map_and_finds_every_caption():
    stream = torch.Generator().manual_seed(0)
    features, map_ = torch.randn(200, 6, generator=stream), torch.randn(6, 4, generator=stream)
    texts = features @ map_ + torch.tensor([5.0, -3.0, 0.0, 1.0])
    probe = fit_probe(features[:150], texts[:150])
    readings, truth = probe(features[150:]), texts[150:] - probe.text_mean
    torch.testing.assert_close(readings, truth, atol=0.02, rtol=0)
    pool = [str(place) for place in range(200)]
    others = (texts - probe.text_mean)[distractors(pool[150:], pool)]
    assert retrieved(readings, truth, others).double().mean() > 0.9
    with pytest.raises(InputError, match="an embedding for each image"):
        fit_probe(features, texts[:10])


def test_retrieval_by_chance_is_one_in_twenty():
    stream = torch.Generator().manual_seed(0)
    readings, texts = (torch.randn(4000, 16, generator=stream) for _ in range(2))
    pool = [str(place) for place in range(4000)]
    found = retrieved(readings, texts, texts[distractors(pool, pool)])
    assert found.double().mean().item() == pytest.approx(1 / 20, abs=0.012)


def test_distractors_are_others_and_do_not_depend_on_how_many_images_there_are():
    pool = [f"caption {place}" for place in range(30)]
    own = [pool[3], "not in the pool", pool[29]] * 20
    places = distractors(own, pool)
    assert places.shape == (60, 19)
    for caption, row in zip(own, places.tolist(), strict=True):
        assert len({pool[place] for place in row} | {caption}) == 20
    assert torch.equal(distractors(own[:10], pool), places[:10])
    with pytest.raises(InputError, match="among 20 captions needs more than 19"):
        distractors(own, pool[:19])


def test_an_own_caption_that_is_not_the_nearest_is_not_found():
    readings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    own = torch.tensor([[2.0, 0.1], [0.1, 2.0], [3.0, 0.0]])
    others = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]], [[7.0, 0.0]]])
    assert retrieved(readings, own, others).tolist() == [True, False, False]  # a draw is not found
