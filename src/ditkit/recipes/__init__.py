"""Recipes: Python functions that return a `Recipe`; the docstring says source, command, cost, result."""

from collections.abc import Callable

from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.recipes.anysize import anysize_fashion, imagenet_anysize
from ditkit.recipes.clipart import clipart, clipart_latent, clipart_matryoshka, clipart_t2i
from ditkit.recipes.digits import digits
from ditkit.recipes.emoji import emoji_matryoshka, emoji_t2i
from ditkit.recipes.fashion import fashion_dit, fashion_sit
from ditkit.recipes.finetune import finetune_dit_xl2
from ditkit.recipes.imagenet import (
    imagenet256_dit_xl2,
    imagenet256_sit_xl2,
    imagenet256_udit_b,
    imagenet256_udit_l,
    imagenet256_udit_s,
    imagenet512_dit_xl2,
    imagenet512_sit_xl2,
    imagenet512_udit_b,
)
from ditkit.recipes.mdm import mdm_cc12m_64, mdm_cc12m_256, mdm_cc12m_1024, mdm_imagenet_256
from ditkit.recipes.video import moving_digits, video_webvid_256

RECIPES: dict[str, Callable[[], Recipe]] = {
    "anysize-fashion": anysize_fashion,
    "clipart": clipart,
    "clipart-latent": clipart_latent,
    "clipart-matryoshka": clipart_matryoshka,
    "clipart-t2i": clipart_t2i,
    "digits": digits,
    "emoji-matryoshka": emoji_matryoshka,
    "emoji-t2i": emoji_t2i,
    "fashion-dit": fashion_dit,
    "fashion-sit": fashion_sit,
    "finetune-dit-xl2": finetune_dit_xl2,
    "imagenet256-dit-xl2": imagenet256_dit_xl2,
    "imagenet256-sit-xl2": imagenet256_sit_xl2,
    "imagenet256-udit-b": imagenet256_udit_b,
    "imagenet256-udit-l": imagenet256_udit_l,
    "imagenet256-udit-s": imagenet256_udit_s,
    "imagenet512-dit-xl2": imagenet512_dit_xl2,
    "imagenet512-sit-xl2": imagenet512_sit_xl2,
    "imagenet512-udit-b": imagenet512_udit_b,
    "imagenet-anysize": imagenet_anysize,
    "mdm-cc12m-64": mdm_cc12m_64,
    "mdm-cc12m-256": mdm_cc12m_256,
    "mdm-cc12m-1024": mdm_cc12m_1024,
    "mdm-imagenet-256": mdm_imagenet_256,
    "moving-digits": moving_digits,
    "video-webvid-256": video_webvid_256,
}


def recipe(name: str) -> Recipe:
    """A recipe by name; InputError listing the names when there is none."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; choose one of: {', '.join(RECIPES)}")
    return RECIPES[name]()


__all__ = ["RECIPES", "recipe"]
