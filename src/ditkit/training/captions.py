"""The captions that a run asks for, embedded once: those of the images it trains on, and of those it is measured
with. The encoder is freed afterwards."""

from pathlib import Path

import torch

from ditkit.data import Source
from ditkit.data.latents import Latents
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.text import TextCache, embed


def read_captions(recipe: Recipe, source: Source | Latents, out: Path, device: torch.device) -> TextCache:
    """Their embeddings, in the run's folder `text`: made, or read where they are. InputError as of `embed`."""
    assert recipe.text is not None
    assert source.captions is not None
    try:
        held_out = recipe.data.open("test").captions or ()
    except InputError:  # nothing is held out, or only latents are here
        held_out = ()
    return embed([*source.captions, *held_out], recipe.text, out / "text", device=device)
