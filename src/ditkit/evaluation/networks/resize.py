"""How images come to the one size that a feature network reads: the named conventions.

Each takes floats (N, C, H, W) of 0 to 255 and a side in pixels and gives (N, C, side, side), unrounded.
They differ by much more than models do (a bicubic resize without antialiasing costs 6 points of FID on
FFHQ), so the convention is a part of the result.

    adm          TF1's bilinear: pixel i of the output lies at i · in / out, without the half pixel that
                 centres would give; no antialiasing. What the ADM evaluator's graph does.
    pytorch-fid  bilinear between pixel centres; no antialiasing
    clean        bicubic (a = -1/2), antialiased, clipped to 0..255: clean-fid's, and Pillow's in mode F
    clip         clean on the shorter side, then the centre square: CLIP's

Sources: openai/guided-diffusion `evaluator.py`, mseitzer/pytorch-fid, Parmar et al. 2022 (clean-fid).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def tf1_bilinear(images: Tensor, side: int) -> Tensor:
    """Linear along the width, then the height; coordinates from the scale rounded to float32, as in TF1."""
    for dim in (3, 2):
        inner = images.shape[dim]
        scale = torch.tensor(inner / side, dtype=torch.float32).to(images)
        place = torch.arange(side, device=images.device) * scale
        low = place.long()
        high = (low + 1).clamp(max=inner - 1)
        share = (place - low).view(-1, *(1,) * (3 - dim))
        left, right = images.index_select(dim, low), images.index_select(dim, high)
        images = left + (right - left) * share
    return images


def bilinear(images: Tensor, side: int) -> Tensor:
    """Linear between pixel centres, as `F.interpolate` does it; shrinking aliases."""
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)


def bicubic(images: Tensor, side: int) -> Tensor:
    """Stretched to the square by Pillow's bicubic filter, whose support grows when it shrinks."""
    return _pillow_bicubic(images, side, side)


def bicubic_crop(images: Tensor, side: int) -> Tensor:
    """The shorter side to `side` by Pillow's bicubic filter, then the centre square."""
    height, width = images.shape[2:]
    short = min(height, width)
    images = _pillow_bicubic(images, side * height // short, side * width // short)
    top, left = ((length - side) // 2 for length in images.shape[2:])
    return images[:, :, top : top + side, left : left + side]


def _pillow_bicubic(images: Tensor, height: int, width: int) -> Tensor:
    # With antialias torch takes a = -1/2, Pillow's kernel; without it, -3/4.
    resized = F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 255)


class Resize(NamedTuple):
    """A convention: what it does, and the same in words for a report."""

    call: Callable[[Tensor, int], Tensor]
    words: str


RESIZES: dict[str, Resize] = {
    "adm": Resize(tf1_bilinear, "TF1 bilinear"),
    "pytorch-fid": Resize(bilinear, "bilinear without antialiasing"),
    "clean": Resize(bicubic, "antialiased bicubic"),
    "clip": Resize(bicubic_crop, "antialiased bicubic of the shorter side and centre crop"),
}
