"""Caption retrieval: of some captions, does an image look most like its own?

What an image says is read by a probe: a ridge regression from a network's features of real images to a text
encoder's embeddings of their captions, fitted once and frozen. An image finds its caption when this one's
embedding has a larger cosine with the reading than those of the others, drawn at random (R-precision: Xu et
al., "AttnGAN", CVPR 2018, section 4.1, there one among 100). Chance finds one in `CANDIDATES`.

Both sides are taken relative to the mean of the real captions: embeddings of sentences all point
in much the same direction. A probe is as good as what it finds for real images that it was not fitted to; their
value belongs beside every other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ditkit.errors import InputError
from ditkit.randomness import generator

CANDIDATES = 20
PENALTIES = np.logspace(-1, 5, 13)  # the one with the least error on images left out is taken


@dataclass(frozen=True, eq=False)
class Probe:
    """Features (N, D) to readings (N, E), comparable with captions' embeddings less `text_mean`."""

    weight: Tensor
    """(D, E)"""
    mean: Tensor
    """(D,), of the features; they are divided by `spread`."""
    spread: Tensor
    """(D,)"""
    text_mean: Tensor
    """(E,)"""
    penalty: float

    def __call__(self, features: Tensor) -> Tensor:
        return ((features - self.mean) / self.spread) @ self.weight


def fit_probe(features: Tensor, texts: Tensor) -> Probe:
    """From features (N, D) of real images and embeddings (N, E) of their captions; the penalty by leaving one image
    out. InputError for fewer than two images."""
    if len(features) != len(texts) or len(features) < 2:
        raise InputError(
            f"a probe of captions needs an embedding for each image and at least two; these are {len(features)} "
            f"images and {len(texts)} embeddings"
        )
    from sklearn.linear_model import RidgeCV  # two seconds to import

    mean, spread, text_mean = features.mean(0), features.std(0).clamp(min=1e-6), texts.mean(0)
    regression = RidgeCV(alphas=PENALTIES, fit_intercept=False)
    regression.fit(((features - mean) / spread).double().numpy(), (texts - text_mean).double().numpy())
    weight = torch.from_numpy(regression.coef_.T.copy()).float()
    return Probe(weight, mean, spread, text_mean, float(regression.alpha_))


def distractors(own: Sequence[str], pool: Sequence[str], candidates: int = CANDIDATES) -> Tensor:
    """Places (N, candidates - 1) in `pool`, distinct captions, to be confused with each caption of `own`; a
    function of that caption's place in `own` alone. InputError when the pool is too small."""
    wanted = candidates - 1
    if len(pool) <= wanted:
        raise InputError(f"retrieval among {candidates} captions needs more than {len(pool)} different ones")
    rows = []
    for k, caption in enumerate(own):
        drawn = generator(k, 0, "distractors").permutation(len(pool))[:candidates]
        rows.append([int(place) for place in drawn if pool[place] != caption][:wanted])
    return torch.tensor(rows)


def retrieved(readings: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """bool (N,): whose reading (N, E) is nearer in angle to its own caption (N, E) than to all others (N, C, E)."""
    right = F.cosine_similarity(readings, own, dim=-1)
    wrong = F.cosine_similarity(readings[:, None], others, dim=-1)
    return right > wrong.amax(dim=1)
