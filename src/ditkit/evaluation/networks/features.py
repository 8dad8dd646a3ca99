"""What every score is measured in: the features that one frozen network reads from images.

A feature network is any callable of this protocol; each is one file beside this one. Values are
comparable only under the same network, weights and resizing, so all three belong to every result.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ditkit.errors import InputError


class Features(NamedTuple):
    """What a network reads from N images: float32, on the CPU."""

    pooled: Tensor
    """(N, D): Fréchet distance, kernel distance, precision and recall are measured in these."""
    logits: Tensor | None = None
    """(N, K): readings of K classes, for the Inception Score and, by the data's own classifier, accuracy."""
    spatial: Tensor | None = None
    """(N, S): features that still know where things are, for sFID."""


class FeatureNetwork(Protocol):
    """uint8 images (N, C, H, W) of any size -> `Features`. Frozen: no gradients, no modes, no autocast."""

    name: str
    """By which one is chosen, for instance "inception"."""
    hash: str
    """SHA-256 of the weights' file, 64 hex digits."""
    dim: int
    """D."""
    resize: str
    """How images come to the network's size, in words; "none" where it reads them as they are."""
    classes: int | None
    """K where logits read the very labels that images are made for; None for every other network."""

    def __call__(self, images: Tensor) -> Features: ...


def check_images(images: Tensor) -> None:
    """InputError unless these are uint8 images (N, C, H, W) with C of 1 or 3 and at least one pixel."""
    right = images.ndim == 4 and images.shape[1] in (1, 3) and min(images.shape[2:]) > 0
    if images.dtype != torch.uint8 or not right:
        raise InputError(
            f"features are read from uint8 images (N, 1 or 3, H, W), 0 to 255; these are {images.dtype} "
            f"{tuple(images.shape)}"
        )
