"""Writing clips as files: video, GIF and WebP."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ditkit.errors import InputError
from ditkit.lazy import torch
from ditkit.movies import ANIMATIONS, pyav
from ditkit.records import written_whole

if TYPE_CHECKING:
    from torch import Tensor

ENCODERS = {"libx264": {"crf": "12"}, "mpeg4": {"qmin": "1", "qmax": "3"}}  # the first there is; its quality

log = logging.getLogger(__name__)


def save_movie(clip: Tensor, path: Path, fps: float, *, synced: bool = True) -> None:
    """A clip, uint8 (C, F, H, W), C = 1 or 3, as a file, written whole (`synced` as there): .mp4
    (H.264), or .gif and .webp, which play in a loop.

    WebP is lossless, GIF is for grey; both join frames that are the same. GIF counts time in hundredths of a
    second and WebP in thousandths, so the rate is what comes nearest. Sides of an .mp4 are made even by repeating the
    last row and column. InputError for other endings, a rate that is not positive, or when PyAV is needed and absent.
    """
    if fps <= 0:
        raise InputError(f"{path}: {fps:g} frames a second cannot be shown; give more than 0")
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        with written_whole(path, synced=synced) as place:
            _save_video(clip, path, place, fps)
    elif suffix in ANIMATIONS:
        duration = max(2, round(100 / fps)) * 10 if suffix == ".gif" else max(1, round(1000 / fps))  # ms
        pixels = clip.permute(1, 2, 3, 0).cpu().numpy()  # (F, H, W, C)
        first, *others = [Image.fromarray(p[:, :, 0] if p.shape[2] == 1 else p) for p in pixels]
        with written_whole(path, synced=synced) as place:
            first.save(  # GIF knows no `lossless` and passes over it
                place, save_all=True, append_images=others, duration=duration, loop=0, lossless=True
            )
    else:
        raise InputError(f"{path}: a clip is written as .mp4, .gif or .webp; give one of these endings")


def _save_video(clip: Tensor, path: Path, place: Path, fps: float) -> None:
    """Write `place`, which becomes `path`."""
    av = pyav()
    height, width = clip.shape[2:]
    pixels = torch.nn.functional.pad(
        clip.cpu().expand(3, -1, -1, -1).float(), (0, width % 2, 0, height % 2, 0, 0), mode="replicate"
    )
    if (height % 2, width % 2) != (0, 0):
        log.warning(
            f"{path}: {height}x{width} padded to {height + height % 2}x{width + width % 2}; .mp4 takes even sides"
        )
    encoder = next(name for name in ENCODERS if name in av.codecs_available)
    with av.open(str(place), "w") as container:
        stream = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = pixels.shape[2:]
        stream.pix_fmt, stream.options = "yuv420p", ENCODERS[encoder]
        for image in pixels.byte().permute(1, 2, 3, 0).contiguous().numpy():  # (H, W, 3)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
