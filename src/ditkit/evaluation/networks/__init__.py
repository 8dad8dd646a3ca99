"""The feature networks one can name, and how each is loaded. Adding one: a file here, and a line below.

The classifier of one's own data set (`classifier.py`) is not among them: it belongs to the data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ditkit.errors import InputError
from ditkit.lazy import Named

if TYPE_CHECKING:
    import torch

    from ditkit.evaluation.networks.frozen import Frozen

_HERE = "ditkit.evaluation.networks"
_inception = Named(f"{_HERE}.inception:load_inception")
_efficientnet = Named(f"{_HERE}.efficientnet:load_efficientnet")


class Entry(NamedTuple):
    """A network by name."""

    load: Callable[[Path | str | None], Frozen]
    """Takes a local file, folder or Hub id of weights; None for the network's usual ones."""
    about: str


FEATURES: dict[str, Entry] = {
    "inception": Entry(_inception, "FID's Inception, read as the ADM evaluator does; fetched, 96 MB"),
    "inception-pytorch-fid": Entry(
        partial(_inception, convention="pytorch-fid"), "the same, resized and scaled as pytorch-fid does"
    ),
    "inception-clean": Entry(
        partial(_inception, convention="clean"), "the same, resized with antialiasing as clean-fid does"
    ),
    "dinov2": Entry(
        Named(f"{_HERE}.dinov2_clip:load_dinov2"),
        "DINOv2 large, class token: FD-DINOv2; from the Hub, 1.2 GB",
    ),
    "clip": Entry(
        Named(f"{_HERE}.dinov2_clip:load_clip"),
        "CLIP large: CLIP-FID and the CLIP score of prompts; from the Hub, 1.7 GB",
    ),
    "efficientnet": Entry(_efficientnet, "EfficientNet-Lite0, 1280 features; no download"),
    "efficientnet-112": Entry(
        partial(_efficientnet, dim=112), "the same, 112 features: enough with a few thousand images"
    ),
}


def load_features(name: str, weights: Path | str | None = None, device: torch.device | str = "cpu") -> Frozen:
    """The feature network of that name on a device, with its usual weights or other ones.

    `weights` is a local file, or for dinov2 and clip a folder or Hub id. InputError: no such name, no
    such weights, no network to fetch them, or the extra `features` is not installed.
    """
    if name not in FEATURES:
        raise InputError(f"no feature network {name!r}; use one of: {', '.join(FEATURES)}")
    return FEATURES[name].load(weights).to(device)
