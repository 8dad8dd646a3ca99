"""The captions that a run needs, embedded once: those of the images it trains on, and of those it is measured
with. The encoder is freed afterwards."""

from pathlib import Path

import torch

from ditkit.data import Source
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.text import TextCache, embed

TEXT = "text"  # the folder's name


def read_captions(recipe: Recipe, source: Source, out: Path, device: torch.device) -> TextCache:
    """Their embeddings: of `train.texts`, or of the folder `text` beside the latents that the run trains from, where
    `ditkit encode` put them, or the run's own; made when they are not there. InputError as of `embed`."""
    folder = recipe.train.texts
    if folder is None:
        beside = None if recipe.train.latents is None else recipe.train.latents / TEXT
        folder = beside if beside and beside.is_dir() else out / TEXT
    return embed_captions(recipe, source, folder, device)


def embed_captions(recipe: Recipe, source: Source, folder: Path, device: torch.device) -> TextCache:
    """As `read_captions`, in this folder."""
    assert recipe.text is not None
    assert source.captions is not None
    try:
        held_out = recipe.data.open("test").captions or ()
    except InputError:  # nothing is held out, or only latents are here
        held_out = ()
    return embed([*source.captions, *held_out], recipe.text, folder, device=device)
