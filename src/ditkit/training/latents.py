"""Training from latents on disk instead of images: does the cache belong to the recipe, and how it is read.

The batches of a cache hold moments where those of images hold pixels; everything else about them, order,
labels and flips, is the same, and so are the draws from the posteriors. So a run from a cache is the run on
the images, to the rounding of the encoder's sums.
"""

import logging
from pathlib import Path

from torch import Tensor

from ditkit.codecs import Codec, PyramidCodec, Vae, VaeConfig
from ditkit.data.latents import Index, Latents, known_facts, open_latents
from ditkit.data.latents.cache import data_facts
from ditkit.errors import InputError
from ditkit.layout import Layout, layout_of
from ditkit.recipe import Recipe
from ditkit.training.data import recorded

log = logging.getLogger(__name__)


def codec_facts(config: VaeConfig) -> dict[str, object]:
    """What of the codec's section, besides the encoder's weights, decides the moments."""
    return config.model_dump(mode="json", include={"precision", "tiling"})


def multiple_of(recipe: Recipe) -> int | None:
    """Of images that keep their own sizes the pixels of which both sides are multiples; None of square ones."""
    return recipe.multiple if recipe.data.aspect == "native" else None


def open_for(recipe: Recipe, codec: Codec, folder: Path) -> tuple[Latents, Codec]:
    """The latents in `folder`, if they are those of the recipe's images and codec, and the codec of their batches.

    InputError, naming both values and the remedy, when codec, size, data or classes are others or mirrored
    images are lacking; of another project's layout only size, classes and flips are known.
    """
    where = f"`train.latents` {folder}"
    codec = codec.base if isinstance(codec, PyramidCodec) else codec
    if not isinstance(codec, Vae):
        raise InputError(
            f"{where}: the codec is {recipe.codec.kind}, which has no latents; give `codec` vae, or leave the cache out"
        )
    found = open_latents(folder)
    channels, height, width = codec.layout(*recipe.data.shape).shape
    expected = (2 * channels, height, width)
    if tuple(found.shape) != expected:
        raise InputError(
            f"{where} has latents of {_size(found.shape)}, the recipe's are {_size(expected)} (`data.size` "
            f"{recipe.data.size} at 1/{codec.downsampling}); give its `data.size` and `codec`, or encode again"
        )
    found.pixels = codec.downsampling
    made, wanted = (None if found.index is None else found.index.multiple), multiple_of(recipe)
    if made != wanted:
        raise InputError(
            f"{where} has latents of {_cut(made)}, the recipe's are of {_cut(wanted)}; give its `data.aspect` and "
            "`backbone.patch`, or encode again into another folder"
        )
    if recipe.data.flip and not found.flips:
        raise InputError(
            f"{where} has no mirrored images, but `data.flip` is True; give `data.flip` False, or encode with flips"
        )
    if found.index is not None:
        recipe.data.check_classes(found.names, where)
        _check_origin(found.index, recipe, codec, where)
        check_images(found, recipe, where)
    else:
        log.info(f"{folder}: {found.note}; which autoencoder and images it was made from is not recorded")
        classes = recipe.data.classes
        if classes and found.labels is None:
            raise InputError(
                f"{where} has no labels, but `data.classes` is {classes}; extract them with labels"
            )
        if classes is not None and classes < len(found.names):
            raise InputError(
                f"{where} has labels up to {len(found.names) - 1}, but `data.classes` is {classes}; correct it or leave "
                "it out"
            )
        found.names = tuple(str(label) for label in range(classes or len(found.names)))
    return found, recipe.nested(FromMoments(codec))


def _check_origin(index: Index, recipe: Recipe, codec: Vae, where: str) -> None:
    """InputError at the first thing that the cache was made with and the recipe has otherwise."""
    theirs = {f"data.{name}": value for name, value in known_facts(index, recipe.data).items()}
    ours = {f"data.{name}": value for name, value in data_facts(recipe.data).items()}
    facts = codec_facts(codec.config)
    theirs |= {f"codec.{name}": index.codec.get(name) for name in facts}
    ours |= {f"codec.{name}": value for name, value in facts.items()}
    for name in theirs | ours:
        if theirs.get(name) != ours.get(name):
            raise InputError(
                f"{where} was made with {name} {theirs.get(name)}, the recipe has {ours.get(name)}; give the same, or "
                "`ditkit encode` the recipe's own into another folder"
            )
    if index.encoder != codec.encoder_hash:
        raise InputError(
            f"{where} was made by another autoencoder: {index.codec.get('id')} with encoder {index.encoder[:12]}, the "
            f"recipe's {codec.config.id} has {codec.encoder_hash[:12]}; give its `codec.id`, or `ditkit encode` with "
            "this one into another folder"
        )


def check_images(found: Latents, recipe: Recipe, where: str) -> None:
    """InputError when the recipe's images, where they are at hand for validation, are not those that were encoded."""
    made_of = None if found.index is None else found.index.data.get("content")
    if made_of is None or not recipe.train.validate_images:
        return
    try:
        source = recipe.data.open("train")
    except InputError:  # reported when they are needed
        return
    if recorded(recipe.data, source).content != made_of:
        raise InputError(
            f"{where} was made of other images than {recipe.data.kind} has now; put them back, or encode them into another "
            "folder"
        )


def _cut(multiple: int | None) -> str:
    return "square images" if multiple is None else f"images of multiples of {multiple} pixels"


def _size(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{height}x{width} with {channels // 2} channels"


class FromMoments:
    """The codec of batches that hold moments: the first half of encoding is done."""

    random = True

    def __init__(self, codec: Vae):
        self.channels, self._codec = codec.channels, codec

    def layout(self, *size: int) -> Layout:
        """Of moments of that size."""
        return layout_of(self.channels, *size)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return self._codec.sample(images, noise)

    def values(self, state: Tensor) -> Tensor:
        return self._codec.values(state)

    def decode(self, state: Tensor) -> Tensor:
        return self._codec.decode(state)

    def save(self, folder: Path) -> None:
        self._codec.save(folder)
