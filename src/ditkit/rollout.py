"""Clips longer than a model's own: window after window, each beginning with the last frames of the one before.

For models trained to go on from given frames (`transport.given_frames`). A loop is closed by a window that begins with
the last frames and ends with the first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from ditkit.errors import InputError
from ditkit.pipeline import Pipeline, Said, Sampling

WINDOW = 2**32  # between the seeds of a clip's windows: other noise in each, and none of another clip's


def roll_out(
    pipeline: Pipeline,
    cond: Said | None = None,
    *,
    seeds: Sequence[int],
    length: int | None = None,
    keep: int = 4,
    loop: bool = False,
    **how: Unpack[Sampling],
) -> Tensor:
    """Clips uint8 (N, C, F, H, W) of `length` frames, and those that lead back to the first where they `loop`.

    The first window is as `Pipeline.generate` makes it, after how["start"] where that is given; `keep` frames of each
    are the beginning of the next. Without `length` there is one window. InputError: no frames left to sample in a window.
    """
    first, start = how.pop("start", None), how.get("frames")
    window = start or pipeline.recipe.data.shape[0]
    if first is not None:
        first = first[:, :, None] if first.ndim == 4 else first
        first = first.expand(len(seeds), *first.shape[1:])
    most = (window - 1) // 2 if loop else window - 1
    if (loop or (length or 0) > window) and not 1 <= keep <= most:
        raise InputError(f"--keep {keep}: of windows of {window} frames, keep 1 to {most}")
    clips = pipeline.generate(cond, seeds=seeds, **how, start=None if first is None else first[:, :, -keep:])
    if first is not None:
        clips = torch.cat([first, clips[:, :, min(keep, first.shape[2]) :]], dim=2)
    for number in range(
        1, 1 + (max(0, (length or 0) - clips.shape[2]) + window - keep - 1) // (window - keep)
    ):
        later = [seed + number * WINDOW for seed in seeds]
        more = pipeline.generate(cond, seeds=later, **how, start=clips[:, :, -keep:])
        clips = torch.cat([clips, more[:, :, keep:]], dim=2)
    clips = clips[:, :, :length]
    if loop:
        last = [seed + (WINDOW - 1) * WINDOW for seed in seeds]
        ends = {"start": clips[:, :, -keep:], "end": clips[:, :, :keep]}
        clips = torch.cat(
            [clips, pipeline.generate(cond, seeds=last, **how, **ends)[:, :, keep:-keep]], dim=2
        )
    return clips
