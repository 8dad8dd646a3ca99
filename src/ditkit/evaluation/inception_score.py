"""Inception Score: are the images of one class each, and of all classes together?

    IS = mean over splits of exp( mean_i sum_c p_ic (log p_ic - log p_c) ),   p_c = mean_i p_ic

(Salimans et al. 2016, arXiv:1606.03498), in ADM's form: splits of 5,000 consecutive images, unshuffled,
the last one shorter, and their arithmetic mean. What is kept of the images is three sums per split, so
that parts of a set can be joined.

Differs: float64 throughout, and p log p is 0 where p is 0; ADM's float32 gives NaN there.

Which logits (for ADM's values the 1,008 of the FID Inception without their bias):
`ditkit.evaluation.networks.features`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ditkit.errors import InputError

SPLIT = 5_000


class InceptionScore(NamedTuple):
    mean: float
    """Over the splits; 1 at worst, the number of classes at best."""
    std: float
    """Over the splits (population; 0 for one split): how the score varies among sets of one split."""


@dataclass(frozen=True, eq=False)
class ScoreSums:
    """The Inception Score's sums over S splits of K classes; parts of a set are joined by `+`."""

    split: Tensor
    """(S,), int64, ascending: the splits that have images, image index // 5,000."""
    count: Tensor
    """(S,), int64: their images."""
    probability: Tensor
    """(S, K), float64: the sum of p."""
    negentropy: Tensor
    """(S,), float64: the sum of p log p over images and classes."""

    @classmethod
    def of(cls, logits: Tensor, *, first: int = 0, size: int = SPLIT) -> "ScoreSums":
        """The sums of consecutive images' logits (N, K); `first` is the index of the first image."""
        split = torch.arange(first, first + len(logits)) // size
        log_p = logits.detach().cpu().double().log_softmax(dim=1)
        p = log_p.exp()
        return _summed(split, torch.ones_like(split), p, (p * log_p).sum(dim=1))

    def __add__(self, other: "ScoreSums") -> "ScoreSums":
        """Both parts together; InputError when they have not the same classes."""
        if self.probability.shape[1] != other.probability.shape[1]:
            raise InputError(
                f"readings of {self.probability.shape[1]} and of {other.probability.shape[1]} classes "
                "cannot be joined; take both from the same network"
            )
        return _summed(
            torch.cat([self.split, other.split]),
            torch.cat([self.count, other.count]),
            torch.cat([self.probability, other.probability]),
            torch.cat([self.negentropy, other.negentropy]),
        )


def _summed(split: Tensor, count: Tensor, probability: Tensor, negentropy: Tensor) -> ScoreSums:
    """Rows of the same split added up."""
    splits, place = split.unique(return_inverse=True)
    return ScoreSums(
        splits,
        count.new_zeros(len(splits)).index_add(0, place, count),
        probability.new_zeros(len(splits), probability.shape[1]).index_add(0, place, probability),
        negentropy.new_zeros(len(splits)).index_add(0, place, negentropy),
    )


def inception_score(sums: ScoreSums) -> InceptionScore:
    """Mean and spread of the score over the splits; InputError when there are no images."""
    if not len(sums.split):
        raise InputError("the Inception Score of 0 images is not defined; give at least 1, better 50,000")
    marginal = sums.probability / sums.count[:, None]
    divergence = sums.negentropy / sums.count - torch.xlogy(marginal, marginal).sum(dim=1)
    scores = divergence.exp()  # (S,)
    return InceptionScore(scores.mean().item(), scores.std(correction=0).item())
