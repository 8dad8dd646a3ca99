"""A set of images, scored: every number with all that one needs to compare it.

`scores_of` computes what one network's statistics of the samples and of the reference allow; a `Report`
holds the scores of all networks and the protocol. Which images, which reference, which networks:
`ditkit.scoring`.

What N images of a perfect model reach is not 0 but the value of N other real images: read a score beside
that of as many held-out images.
"""

from typing import Any

from torch import Tensor

from ditkit.config import Section
from ditkit.evaluation.clip_score import clip_score
from ditkit.evaluation.frechet import frechet_distance, frechet_warning
from ditkit.evaluation.inception_score import inception_score
from ditkit.evaluation.kernel import kernel_distance
from ditkit.evaluation.neighbours import authenticity, precision_recall
from ditkit.evaluation.statistics import Statistics

MISTAKES = 10
FEWEST = 4  # images, for precision and recall with k = 3


class LabelScores(Section):
    """Readings by a network that knows the data's classes."""

    accuracy: float | None
    """Share of the images that are read as their own label; None without labels."""
    class_accuracy: list[float | None] | None
    """The same per class; None for a class without images."""
    asked: list[int] | None
    """Images by their label, per class; None without labels."""
    read: list[int]
    """Images read as each class: the balance of the set."""
    mistakes: list[tuple[int, int, int]]
    """The most frequent ones as (label, class read, images), the worst first."""


class Scores(Section):
    """A set of images in the features of one network, against one reference."""

    features: str
    """The network's name; values of different networks cannot be compared."""
    features_hash: str
    """SHA-256 of its weights."""
    dim: int
    resize: str
    """How images came to the network's size."""
    reference: str
    reference_hash: str
    """Names the reference's images whatever their order, or the file of their statistics."""
    reference_images: int | None
    """None where a file of statistics does not say."""
    frechet: float
    """Fréchet distance: FID when the network is Inception."""
    spatial_frechet: float | None
    """The same of features that know where things are: sFID."""
    inception_score: float | None
    """Where the network has logits."""
    precision: float | None
    recall: float | None
    kernel: float | None
    """Kernel distance, KID when the network is Inception; not multiplied by 1,000."""
    clip_score: float | None
    """100 times the cosine with the caption, or the prompt of the label, where the network reads text."""
    authenticity: float | None = None
    """Share of samples that are not copies of training images, where the features of all of these are at hand."""
    retrieval: float | None = None
    """Share of samples whose own caption is the nearest of 20."""
    labels: LabelScores | None
    """Where the network reads the data's classes."""
    warnings: list[str]
    """What to know before the numbers are believed."""


class Report(Section):
    """A result with everything one needs to compare it; `model_dump_json()` is its record."""

    images: int
    """N, the number of images scored."""
    images_hash: str
    """Names the images, whatever their order."""
    scores: list[Scores]
    """By network, in the order of the command."""
    protocol: dict[str, Any]
    """What the caller knows: seeds, sampler, steps, NFE, guidance, precision, device, commit, versions."""

    @property
    def first(self) -> Scores:
        """The scores of the first network."""
        return self.scores[0]


def scores_of(
    samples: Statistics,
    reference: Statistics,
    name: str,
    prompts: Tensor | None = None,
    retrieval: float | None = None,
) -> Scores:
    """All that these statistics, of one network, allow to say; `name` is the reference's.

    `prompts` (R, D) are text embeddings for the rows of `samples`; `retrieval` is kept as it is. InputError for fewer
    than two images or statistics of different networks.
    """
    warnings = [frechet_warning(samples.moments, reference.moments)]
    pair = kernel = spatial = None
    if min(len(samples.rows), len(reference.rows)) >= FEWEST:
        pair = precision_recall(reference.rows, samples.rows)
        kernel = kernel_distance(reference.rows, samples.rows).mean
    whole = reference.count is not None and 2 <= len(reference.rows) == reference.count
    if samples.spatial is not None and reference.spatial is not None:
        spatial = frechet_distance(samples.spatial, reference.spatial)
        warnings.append(frechet_warning(samples.spatial, reference.spatial))
    return Scores(
        features=samples.network,
        features_hash=samples.network_hash,
        dim=len(samples.moments.mean),
        resize=samples.resize,
        reference=name,
        reference_hash=reference.digest,
        reference_images=reference.count,
        frechet=frechet_distance(samples.moments, reference.moments),
        spatial_frechet=spatial,
        inception_score=None if samples.scores is None else inception_score(samples.scores).mean,
        precision=None if pair is None else pair.precision,
        recall=None if pair is None else pair.recall,
        kernel=kernel,
        clip_score=None if prompts is None else clip_score(samples.rows, prompts),
        authenticity=authenticity(reference.rows, samples.rows) if whole else None,
        retrieval=retrieval,
        labels=_label_scores(samples),
        warnings=[warning for warning in warnings if warning],
    )


def _label_scores(samples: Statistics) -> LabelScores | None:
    if samples.confusion is None or samples.read is None:
        return None
    drawn, right = samples.confusion.sum(dim=1), samples.confusion.diagonal()
    labelled = bool(drawn.any())
    shares = [r / a if a else None for r, a in zip(right.tolist(), drawn.tolist(), strict=True)]
    wrong = [(a, r, int(samples.confusion[a, r])) for a, r in samples.confusion.nonzero().tolist() if a != r]
    return LabelScores(
        accuracy=int(right.sum()) / int(drawn.sum()) if labelled else None,
        class_accuracy=shares if labelled else None,
        asked=drawn.tolist() if labelled else None,
        read=samples.read.tolist(),
        mistakes=sorted(wrong, key=lambda row: -row[2])[:MISTAKES],
    )
