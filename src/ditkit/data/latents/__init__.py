"""Latents on disk: an autoencoder's posterior moments of every image, encoded once and trained from many times.

`ditkit encode` writes a cache (`cache.py`); other projects' layouts are read as well (`layouts.py`). Either is
a source whose batches hold moments instead of images. Moments rather than samples, and mirrored images
besides, so that training draws and flips as it would with the images. Whether a cache belongs to a recipe is
decided in ditkit.training.latents.
"""

from pathlib import Path

from ditkit.data.latents.cache import INDEX, PLAN, Cache, Index, known_facts
from ditkit.data.latents.layouts import Edm2, FastDit, LightningDit
from ditkit.data.latents.source import Latents
from ditkit.data.latents.writing import write_cache
from ditkit.errors import InputError


def open_latents(folder: Path) -> Latents:
    """The latents of a folder, whatever its layout; InputError when it holds none, or an unfinished cache."""
    if (folder / INDEX).is_file():
        return Cache(folder)
    if (folder / PLAN).is_file():
        raise InputError(f"{folder} is not finished; give the `ditkit encode` command again, it goes on")
    if (folder / "dataset.json").is_file():
        return Edm2(folder)
    if any(folder.glob("*_features")):
        return FastDit(folder)
    if any(folder.glob("*.safetensors")):
        return LightningDit(folder)
    raise InputError(
        f"{folder} holds no latents: neither {INDEX} of `ditkit encode`, nor dataset.json (EDM2, REPA), nor "
        "*_features (fast-DiT), nor *.safetensors (LightningDiT)"
    )


__all__ = [
    "INDEX",
    "PLAN",
    "Cache",
    "Edm2",
    "FastDit",
    "Index",
    "Latents",
    "LightningDit",
    "known_facts",
    "open_latents",
    "write_cache",
]
