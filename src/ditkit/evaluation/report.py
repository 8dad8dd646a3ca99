"""One set of images, scored: Fréchet distance, class accuracy and class balance, with the protocol.

A set is any iterable of batches (images uint8 (N, C, H, W), labels int64 (N,) or None): a zip of two
`split` tensors, a generator that samples as it goes. The reference of the Fréchet distance is the
training split. The value to read it against is that of the held-out test split, from the same parts:

    reference = reference_moments(train, classifier)
    held_out = evaluate(test, classifier, reference).frechet
    report = evaluate(samples, classifier, reference, protocol={"steps": 50, ...})

What N images of a perfect model reach is not 0 but the value of N training images drawn with
replacement: 0.5 for 1,000 digits.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ditkit.config import Section
from ditkit.errors import InputError
from ditkit.evaluation.classifier import Classifier
from ditkit.evaluation.frechet import Moments, frechet_distance

Batches = Iterable[tuple[Tensor, Tensor | None]]
MISTAKES = 10


class Report(Section):
    """A result with everything one needs to compare it; `model_dump_json()` is its record."""

    frechet: float
    """Fréchet distance to the reference; in units in which the reference varies by 1 per feature."""
    images: int
    """N, the number of images scored."""
    reference_images: int
    accuracy: float | None
    """Share of the images that the classifier reads as the label asked for; None without labels."""
    class_accuracy: list[float | None] | None
    """The same per class; None for a class that was never asked for."""
    asked: list[int] | None
    """Images asked for, per class; None without labels."""
    read: list[int]
    """Images that the classifier reads as each class: the balance of the set."""
    mistakes: list[tuple[int, int, int]]
    """The most frequent ones as (asked, read, images), the worst first."""
    classifier: str
    """Name of the data set that the classifier was trained on."""
    classifier_hash: str
    """SHA-256 of its file: values under different hashes cannot be compared."""
    protocol: dict[str, Any]
    """What the caller knows: seeds, sampler, steps, NFE, guidance, precision, device, commit, versions."""


def evaluate(
    batches: Batches,
    classifier: Classifier,
    reference: Moments,
    *,
    protocol: dict[str, Any] | None = None,
) -> Report:
    """Score a set of images against `reference_moments` of the training split.

    InputError when the set is empty, when only some batches carry labels, when a label is no class of
    the classifier, or when the images are not of its shape.
    """
    classes = classifier.card.classes
    moments = _no_moments(classifier)
    read = torch.zeros(classes, dtype=torch.long)
    confusion = torch.zeros(classes, classes, dtype=torch.long)  # (asked, read)
    for features, guesses, labels in _readings(batches, classifier):
        moments = moments + Moments.of(features)
        read += guesses.bincount(minlength=classes)
        if labels is not None:
            confusion += (labels * classes + guesses).bincount(minlength=classes**2).view(classes, classes)

    asked = confusion.sum(dim=1)
    if moments.count < 2:
        raise InputError(f"{moments.count} images cannot be scored; give at least 2, better 1,000 or more")
    if asked.sum() not in (0, moments.count):
        raise InputError(f"only {asked.sum()} of {moments.count} images carry a label; label all or none")
    labelled = bool(asked.any())
    right = confusion.diagonal()
    return Report(
        frechet=frechet_distance(moments, reference),
        images=moments.count,
        reference_images=reference.count,
        accuracy=int(right.sum()) / moments.count if labelled else None,
        class_accuracy=_shares(right, asked) if labelled else None,
        asked=asked.tolist() if labelled else None,
        read=read.tolist(),
        mistakes=_mistakes(confusion),
        classifier=classifier.card.data,
        classifier_hash=classifier.hash,
        protocol=protocol or {},
    )


def reference_moments(batches: Batches, classifier: Classifier) -> Moments:
    """The feature moments of a set, as `evaluate` wants them of the training split."""
    return sum(
        (Moments.of(features) for features, _, _ in _readings(batches, classifier)), _no_moments(classifier)
    )


def _readings(batches: Batches, classifier: Classifier) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Features (N, D), classes read (N,) and labels asked for (N,) of every batch, on the CPU."""
    for images, labels in batches:
        features, logits = classifier(images)
        guesses = logits.argmax(dim=1).cpu()
        if labels is not None:
            labels = labels.cpu()
            if labels.shape != guesses.shape:
                raise InputError(f"{len(guesses)} images need as many labels, not {tuple(labels.shape)}")
            if len(labels) and (labels.min() < 0 or labels.max() >= classifier.card.classes):
                raise InputError(
                    f"labels from {labels.min()} to {labels.max()}, but the classifier of "
                    f"{classifier.card.data} knows 0 to {classifier.card.classes - 1}"
                )
        yield features, guesses, labels


def _no_moments(classifier: Classifier) -> Moments:
    return Moments.of(torch.empty(0, classifier.card.features))


def _shares(right: Tensor, asked: Tensor) -> list[float | None]:
    return [r / a if a else None for r, a in zip(right.tolist(), asked.tolist(), strict=True)]


def _mistakes(confusion: Tensor) -> list[tuple[int, int, int]]:
    wrong = [(a, r, int(confusion[a, r])) for a, r in confusion.nonzero().tolist() if a != r]
    return sorted(wrong, key=lambda row: -row[2])[:MISTAKES]
