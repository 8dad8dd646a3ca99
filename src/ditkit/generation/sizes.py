"""Of which size the states of a request are, and what images of which levels they become."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from ditkit.codecs import PyramidCodec
from ditkit.codecs.identity import to_bounds
from ditkit.errors import InputError
from ditkit.layout import Layout
from ditkit.sampling.config import SamplingRequest

if TYPE_CHECKING:
    from ditkit.pipeline import Pipeline

PIXELS = (0.0, 255.0)  # the range of 8-bit data


def state_layout(pipeline: "Pipeline", request: SamplingRequest) -> Layout:
    """The layout of states of the request's size and length. InputError where the network does not take it."""
    size, frames = request.size, request.frames
    length, own = pipeline.recipe.data.shape[:-2], pipeline.recipe.data.shape[-2:]
    if frames is not None and not length:
        raise InputError(f"`frames` {frames}: this model makes images; leave it out")
    multiple = pipeline.recipe.multiple
    if size and (size[0] % multiple or size[1] % multiple or not all(size)):
        raise InputError(
            f"`size` {size[0]}x{size[1]}: this model takes sides that are multiples of {multiple} pixels"
        )
    length = length if frames is None else (frames,)
    layout = pipeline.codec.layout(*length, *(size or own))
    pipeline.backbone.check_size(*layout.shape[1:])
    return layout


def decoder(pipeline: "Pipeline", request: SamplingRequest) -> Callable[[Tensor], Tensor]:
    """From states to images of the request's levels, uint8 or numbers. InputError for levels that the model does not have."""
    if not request.numbers:
        return _reader(pipeline, request.levels, numbers=False)
    values, bounds = _reader(pipeline, request.levels, numbers=True), pipeline.recipe.data.bounds or PIXELS
    return lambda state: to_bounds(values(state), bounds)


def _reader(pipeline: "Pipeline", levels: str | None, *, numbers: bool) -> Callable[[Tensor], Tensor]:
    """The codec's way back, for these levels."""
    codec, count = pipeline.codec, len(pipeline.recipe.backbone.ratios)
    if levels is None:
        return codec.values if numbers else codec.decode
    if not isinstance(codec, PyramidCodec) or levels not in ("all", *map(str, range(count))):
        raise InputError(
            f"`levels` {levels}: this model has {count} level{'s' * (count > 1)}"
            + (f"; give 0 to {count - 1}, the highest first, or all" if count > 1 else "; leave it out")
        )
    if levels == "all":
        return partial(codec.side_by_side, numbers=numbers)
    return partial(codec.values if numbers else codec.decode, level=int(levels))


def size_name(shape: Sequence[int]) -> str:
    """16, or of images that are not square 16x24."""
    return str(shape[0]) if len(set(shape)) == 1 else "x".join(map(str, shape))
