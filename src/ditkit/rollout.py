"""Clips longer than a model's own: window after window, each beginning with the last frames of the one before.

For models trained to go on from known frames (`transport.known_frames`). A loop is closed by a window that begins with
the last frames and ends with the first.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ditkit.conditions import LabelsAndPrompts
from ditkit.errors import InputError
from ditkit.pipeline import Pipeline, requested
from ditkit.sampling.config import SamplingRequest

WINDOW = 2**32  # between the seeds of a clip's windows: other noise in each, and none of another clip's


def roll_out(
    pipeline: Pipeline,
    cond: LabelsAndPrompts | None = None,
    *,
    seeds: Sequence[int],
    length: int | None = None,
    keep: int = 4,
    loop: bool = False,
    request: SamplingRequest | None = None,
    progress: bool = False,
    **values: Any,
) -> Tensor:
    """Clips uint8 (N, C, F, H, W) of `length` frames, and those that lead back to the first where they `loop`.

    The first window is as `Pipeline.generate` makes it, after the `start` of the request where there is one; `keep` frames of each
    are the beginning of the next. Without `length` there is one window. InputError: no frames left to sample in a window.
    """
    request = requested(request, values)
    window = request.frames or pipeline.recipe.data.shape[0]
    most = (window - 1) // 2 if loop else window - 1
    if (loop or (length or 0) > window) and not 1 <= keep <= most:
        raise InputError(f"`keep` {keep}: of windows of {window} frames, keep 1 to {most}")

    def made(number: int, start: Tensor | None, end: Tensor | None = None) -> Tensor:
        """A window of each clip, known frames included."""
        own = [seed + number * WINDOW for seed in seeds]
        return pipeline.generate(cond, seeds=own, request=request, progress=progress, start=start, end=end)

    first = request.start
    if first is None:
        clips = made(0, None)
    else:
        clips = (first[:, :, None] if first.ndim == 4 else first).expand(len(seeds), -1, -1, -1, -1)
        start = clips[:, :, -keep:]
        clips = torch.cat([clips, made(0, start)[:, :, start.shape[2] :]], dim=2)
    number = 1
    while clips.shape[2] < (length or 0):
        clips = torch.cat([clips, made(number, clips[:, :, -keep:])[:, :, keep:]], dim=2)
        number += 1
    clips = clips[:, :, :length]
    if loop:
        bridge = made(number, clips[:, :, -keep:], clips[:, :, :keep])
        clips = torch.cat([clips, bridge[:, :, keep:-keep]], dim=2)
    return clips
