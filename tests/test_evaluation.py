"""The evaluator: Fréchet distance by closed form, the frozen classifiers by their own cards."""

import hashlib
from importlib import resources

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ditkit.data import DATA, load_all
from ditkit.errors import InputError
from ditkit.evaluation import (
    Card,
    Classifier,
    Moments,
    bundled_classifier,
    frechet_distance,
    gather,
    load_classifier,
    save_classifier,
    scores_of,
)
from ditkit.evaluation.frechet import frechet_warning
from ditkit.training.classifier import fit_classifier

BUNDLED = {
    "digits": "aff379f0e005",
    "fashion-mnist": "1e755f4e2a7d",
    "clipart": "c14f1d281bbe",
}  # every published number hangs on these files


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def gaussian(mean: Tensor, covariance: Tensor) -> Moments:
    return Moments(1000, mean, covariance * 999)


def by_sqrtm(a: Tensor, b: Tensor) -> float:
    """The textbook form, by a dense root of the plain product."""
    first, second = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    gap = (a.mean(dim=0) - b.mean(dim=0)).numpy()
    return float(gap @ gap + np.trace(first + second - 2 * root))


def sequence(count: int, dim: int, phase: float, scale: float, shift: float) -> Tensor:
    index = torch.arange(1, count * dim + 1, dtype=torch.float64)
    value = 43758.5453 * torch.sin(12.9898 * index + 78.233 * phase)
    return scale * (value - value.floor()).view(count, dim) + shift


def test_distance_of_commuting_gaussians_in_closed_form():
    spread = torch.tensor([4.0, 9.0, 0.25], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    a = gaussian(torch.zeros(3, dtype=torch.float64), turn @ spread.diag() @ turn.T)
    b = gaussian(mean, turn @ torch.diag(16 * spread) @ turn.T)
    # sqrt of the second covariance is 4 times the first's: sum (4 s - s)² = 9 tr S1
    assert frechet_distance(a, b) == pytest.approx((mean.square().sum() + 9 * spread.sum()).item(), rel=1e-12)


def test_distance_agrees_with_sqrtm_and_with_the_adm_evaluator():
    a, b = torch.randn(200, 24).double(), torch.randn(150, 24).double() @ torch.randn(24, 24).double()
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(by_sqrtm(a, b), rel=1e-9)
    a, b = sequence(60, 8, 1, 1, 0), sequence(50, 8, 2, 1.1, 0.05)
    # The value of guided-diffusion's evaluator on these two sets.
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(0.190913500704828, abs=1e-12)


def test_a_set_is_at_no_distance_from_itself_even_when_singular():
    features = torch.randn(300, 16).double()
    features[:, 3] = features[:, 5]
    moments = Moments.of(features)
    assert 0 <= frechet_distance(moments, moments) < 1e-6


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_moments_do_not_depend_on_order_or_batches(size: int):
    features = torch.randn(500, 12, dtype=torch.float64) + 1e4  # a mean that raw sums would choke on
    whole = Moments.of(features)
    shuffled = features[torch.randperm(500)]
    parts = sum((Moments.of(part) for part in shuffled.split(size)), Moments.of(features[:0]))
    assert parts.count == whole.count
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-10, atol=0)
    torch.testing.assert_close(parts.covariance, whole.covariance, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(whole.covariance, np.cov(features.numpy(), rowvar=False), atol=1e-10)


def test_few_images_are_spoken_of_and_unlike_features_refused():
    few, many = Moments.of(torch.randn(8, 8)), Moments.of(torch.randn(90, 8))
    for pair in (few, many), (many, few):
        assert "use more than 8 images" in str(frechet_warning(*pair))
    assert frechet_warning(many, many) is None
    with pytest.raises(InputError, match="8 features against 4"):
        frechet_distance(many, Moments.of(torch.randn(90, 4)))
    with pytest.raises(InputError, match="at least 2"):
        _ = Moments.of(torch.randn(1, 8)).covariance


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two halves of a part of the handwritten digits: training images, labels, test images, labels."""
    source = load_digits()
    images = torch.from_numpy((source.images * 255 / 16).round().astype(np.uint8))[:1200, None]
    labels = torch.from_numpy(source.target)[:1200].long()
    return images[:800], labels[:800], images[800:], labels[800:]


@pytest.fixture(scope="module")
def quick(digits) -> Classifier:
    images, labels, test_images, test_labels = digits
    return fit_classifier(
        images,
        labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=10,
        data="few digits",
        epochs=12,
    )


def test_a_short_fit_reads_digits(quick: Classifier, digits):
    images, _, test_images, test_labels = digits
    right = quick(test_images).logits.argmax(dim=1) == test_labels
    assert quick.card.accuracy == right.sum().item() / len(right)
    assert quick.card.accuracy > 0.9
    features, logits, _ = quick(images)
    assert features.shape == (800, 64)
    assert logits.shape == (800, 10)
    assert features.dtype == logits.dtype == torch.float32
    assert features.double().var(dim=0).mean() == pytest.approx(1, rel=1e-4)


def test_a_classifier_is_frozen(quick: Classifier, digits):
    some = digits[0][:20]
    expected = quick(some).pooled
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(quick.train()(some).pooled, expected, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in quick.eval().parameters())


def test_a_fit_is_a_function_of_its_seed(digits):
    images, labels, test_images, test_labels = (part[:200] for part in digits)
    arguments = {"test_images": test_images, "test_labels": test_labels, "classes": 10, "epochs": 1}
    state = torch.random.get_rng_state()
    first = fit_classifier(images, labels, seed=3, **arguments).hash
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99)
    torch.set_num_threads(2)
    assert fit_classifier(images, labels, seed=3, **arguments).hash == first
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert fit_classifier(images, labels, seed=4, **arguments).hash != first


def test_saved_and_loaded_it_is_the_same(quick: Classifier, digits, tmp_path):
    path = tmp_path / "new" / "quick.safetensors"
    fitted = quick.hash
    save_classifier(path, quick)
    loaded = load_classifier(path)
    assert loaded.hash == quick.hash == fitted == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.card == quick.card
    for ours, theirs in zip(loaded(digits[2])[:2], quick(digits[2])[:2], strict=True):
        assert torch.equal(ours, theirs)


def test_wrong_files_and_images_are_input_errors(quick: Classifier, tmp_path):
    with pytest.raises(InputError, match="no such classifier"):
        load_classifier(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(InputError, match="not a readable classifier"):
        load_classifier(tmp_path / "broken.safetensors")
    save_classifier(tmp_path / "cut.safetensors", quick)
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-10])
    with pytest.raises(InputError, match="not a readable classifier"):
        load_classifier(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match="few digits, which reads uint8"):
        quick(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match="cannot be scored"):
        quick(torch.zeros(2, 1, 8, 8))


def test_wrong_training_sets_are_input_errors():
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 3])
    test = {"test_images": images, "test_labels": labels}
    with pytest.raises(InputError, match="training labels reach from 0 to 3"):
        fit_classifier(images, labels, classes=3, **test)
    with pytest.raises(InputError, match="as many labels"):
        fit_classifier(images, labels[:2], classes=4, **test)
    with pytest.raises(InputError, match="training images must be uint8"):
        fit_classifier(images.float(), labels, classes=4, **test)
    with pytest.raises(InputError, match=r"`epochs` 10000000: .*at most 1000000"):
        fit_classifier(images, labels, classes=4, epochs=10**7, **test)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_classifiers_are_what_they_say(name: str):
    classifier = bundled_classifier(name)
    assert classifier is not None
    assert classifier.card.data == name
    assert classifier.card.features <= 128
    assert classifier.hash.startswith(BUNDLED[name])
    file = resources.files("ditkit") / "assets" / "classifiers" / f"{name}.safetensors"
    assert len(file.read_bytes()) < 1_000_000


def test_bundled_digits_classifier_reads_the_held_out_digits():
    classifier = bundled_classifier("digits")
    assert classifier is not None
    train, (images, labels) = load_all(DATA["digits"], "train"), load_all(DATA["digits"], "test")
    assert labels is not None
    reference = gather([train], classifier)

    def frechet(some: Tensor) -> float:
        return frechet_distance(gather([(some, None)], classifier).moments, reference.moments)

    scores = scores_of(gather([(images, labels)], classifier), reference, "digits train")
    assert scores.labels is not None
    assert scores.labels.accuracy == pytest.approx(classifier.card.accuracy, abs=0.5 / len(images))
    assert scores.labels.accuracy > 0.98
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    assert 20 * scores.frechet < frechet(noise)
    # A model that has learnt ten images of each class by heart scores worse than fresh images do.
    repeated = torch.cat([train[0][train[1] == digit][:10] for digit in range(10)]).repeat(5, 1, 1, 1)
    assert scores.frechet < frechet(repeated)
    with pytest.raises(InputError, match=r"reads uint8 \(N, 1, 8, 8\)"):
        classifier(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))


@pytest.mark.parametrize(("size", "found"), [(16, 16), (32, 32), (28, 28), (64, 28), (None, 28)])
def test_the_classifier_of_a_size_is_taken_where_there_is_one(size, found):
    classifier = bundled_classifier("fashion-mnist", size)
    assert classifier is not None
    assert classifier.card.shape == (1, found, found)
    assert classifier.card.accuracy > 0.85


def test_no_classifier_is_bundled_for_other_data():
    assert bundled_classifier("folder") is None


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 32, 32), (1, 20, 50), (3, 64, 64), (3, 96, 256)])
def test_it_reads_images_of_any_size(shape: tuple[int, int, int]):
    card = Card(data="own", classes=3, shape=shape, seed=0, epochs=1, images=1, accuracy=0)
    classifier = Classifier(card)
    features, logits, _ = classifier(torch.zeros(2, *shape, dtype=torch.uint8))
    assert features.shape == (2, 64)
    assert logits.shape == (2, 3)
    assert sum(parameter.numel() for parameter in classifier.parameters()) < 250_000
