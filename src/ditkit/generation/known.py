"""The parts of a request's states that are not sampled: frames that clips begin or end with, and levels that another model
makes."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ditkit.errors import InputError
from ditkit.generation.sizes import size_name
from ditkit.layout import Layout
from ditkit.sampling import Known
from ditkit.sampling.config import SamplingRequest

if TYPE_CHECKING:
    from ditkit.pipeline import Pipeline


def known_frames(pipeline: "Pipeline", request: SamplingRequest, layout: Layout, count: int) -> Known | None:
    """The frames at both ends of clips, encoded. InputError for a model that was not trained to go on from some, frames
    of another size or number of clips, or none left to sample."""
    if request.start is None and request.end is None:
        return None
    if not pipeline.transport.known_frames:
        raise InputError(
            "`image`, `extend`: this model was not trained to go on from frames (transport.known_frames 0)"
        )
    zeros = torch.zeros(count, *layout.shape, device=pipeline.device)
    parts = [False] * layout.parts
    for name, frames in (("start", request.start), ("end", request.end)):
        if frames is None:
            continue
        state = _encoded_frames(pipeline, frames, name, zeros)
        own = state.shape[2]
        place = slice(own) if name == "start" else slice(layout.parts - own, None)
        zeros[:, :, place] = state
        parts[place] = [True] * own
    if all(parts):
        raise InputError(f"all {layout.parts} frames are given; keep fewer")
    return Known(parts, zeros.__getitem__)


def _encoded_frames(pipeline: "Pipeline", frames: Tensor, name: str, like: Tensor) -> Tensor:
    """Frames (N or 1, C, H, W) or (N or 1, C, F, H, W) as states of clips, for states `like` these."""
    channels = pipeline.recipe.data.channels
    if frames.ndim not in (4, 5) or frames.shape[1] != channels:
        raise InputError(
            f"{name}: frames of shape {tuple(frames.shape)}; give (N or 1, C, H, W) or (N or 1, C, F, H, W) with C = {channels}"
        )
    clip = frames[:, :, None] if frames.ndim == 4 else frames
    state = pipeline.codec.encode(clip.to(pipeline.device))
    count, _, length, *size = like.shape
    if len(state) not in (1, count) or [*state.shape[3:]] != size or state.shape[2] >= length:
        raise InputError(
            f"frames that are kept: {len(state)} clips of {state.shape[2]} frames, in states of "
            f"{'x'.join(map(str, state.shape[3:]))}, for {count} clips of {length}, {'x'.join(map(str, size))}; give one or "
            f"{count}, fewer frames, of one size"
        )
    return state


def check_lower(pipeline: "Pipeline", lower: "Pipeline | None", noise: float) -> None:
    """InputError unless the model of the lower levels fits, and is there exactly where the model needs one."""
    most = pipeline.transport.cascade
    if (lower is not None) != (most is not None):
        raise InputError(
            "`lower`: this model makes all its levels itself; leave it out"
            if lower is not None
            else "`lower`: this model learned its highest level only; give a model of the lower ones"
        )
    if most is not None and noise > most:
        raise InputError(
            f"`lower_noise` {noise}: this model was trained with times up to {most}; give at most that"
        )
    if lower is None:
        return
    theirs, ours = lower.recipe, pipeline.recipe
    high, low = ours.backbone.ratios[:2]
    needed = tuple(side * low // high for side in ours.data.shape[-2:])
    if theirs.data.shape[-2:] != needed or theirs.backbone.ratios != ours.backbone.ratios[1:]:
        raise InputError(
            f"`lower`: a model of {size_name(theirs.data.shape[-2:])} pixels in {len(theirs.backbone.ratios)} levels; this one "
            f"needs {size_name(needed)} in {len(ours.backbone.ratios) - 1}"
        )
    if ours.codec.level_scale[1:] != theirs.codec.level_scale:
        raise InputError(
            f"`lower`: its `codec.level_scale` is {theirs.codec.level_scale}, this model's lower levels have "
            f"{ours.codec.level_scale[1:]}; they must be the same"
        )
