"""What a training draws for each image, declared by its parts and drawn ahead by the loader's processes."""

from collections.abc import Iterable
from dataclasses import replace

from ditkit.codecs import POSTERIOR, Codec
from ditkit.data import Batch
from ditkit.objectives import streams_of
from ditkit.randomness import Draws, Stream
from ditkit.recipe import Recipe

DROP = Stream("drop", "train", "uniform", (), after=1)
"""Label and text are dropped where it is below `label_dropout`."""


def draws_of(recipe: Recipe, codec: Codec, sizes: Iterable[tuple[int, ...]]) -> Draws:
    """The draws of a recipe's training, whose batches `codec` encodes: of images, or moments, of these sizes.

    InputError where one is none of the codec's.
    """
    streams = (
        *recipe.transport.streams,
        DROP,
        *((POSTERIOR,) if codec.random else ()),
        *streams_of(recipe),
        *recipe.backbone.streams,
    )
    shapes = {size: codec.layout(*size).shape for size in sizes}
    return Draws(
        recipe.train.seed,
        streams,
        shapes,
        {size: recipe.backbone.tokens(shape[1:]) for size, shape in shapes.items()},
    )


def with_draws(recipe: Recipe, codec: Codec, batch: Batch) -> Batch:
    """A batch that no loader made, with the draws of its images."""
    if batch.groups:
        return replace(batch, groups=tuple(with_draws(recipe, codec, group) for group in batch.groups))
    draws = draws_of(recipe, codec, [batch.size])
    return replace(batch, draws=draws(batch.index.tolist(), batch.size))
