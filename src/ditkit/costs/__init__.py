"""Costs by name: what a named network or a recipe costs (counted by `costs.count`).

cost = ditkit.cost("DiT-XL/2", size=256)
cost.params, cost.macs      # 674,834,720 and 118.62 G, as printed in the paper
cost.memory(batch=16).peak  # bytes
ditkit.cost("DiT-XL/2", frames=16, tubelet=1, attention="factorised")  # clips
"""

from typing import NamedTuple

import torch

from ditkit.adapting import adapt
from ditkit.backbones import BACKBONES, backbone, check_name, configured
from ditkit.checks import whole_number
from ditkit.costs.count import Cost, count_cost
from ditkit.errors import InputError
from ditkit.recipe import Recipe


class Published(NamedTuple):
    """What a named network was published for."""

    size: int = 256
    """The side of the images, in pixels."""
    channels: int = 4
    downsampling: int = 8
    """Pixels of the image along one of the state's."""
    classes: int = 1000
    learned_variance: bool = True
    words: int = 0
    """Tokens of a text."""
    text_dim: int = 0

    def __str__(self) -> str:
        if self.words:
            return f"{self.channels} colours, a text of {self.words} tokens of {self.text_dim} channels"
        state = f"latents of {self.channels} channels and 1/{self.downsampling} of the side"
        return f"{state if self.downsampling > 1 else 'pixels'}, {self.classes:,} classes"


def published(name: str) -> Published:
    """For ImageNet's latents, as DiT, SiT and U-DiT, with an output for the variance; Matryoshka Diffusion for texts
    and pixels, 64 at its lowest level. InputError for an unknown name."""
    config = check_name(name)
    if name.startswith("MDM"):
        return Published(64 * config.ratios[0], 3, 1, 0, False, words=32, text_dim=2048)
    if len(config.ratios) > 1:
        return Published(256, 3, 1, learned_variance=False)
    return Published()


def cost(
    name: str, size: int | None = None, *, frames: int | None = None, fused: bool = False, **overrides
) -> Cost:
    """Parameters, multiply-adds and memory of a network by name, a key of `BACKBONES`; `overrides` are fields of
    its configuration, such as conditioning="in_context". `frames`: of clips of that many, which need a network with a
    tubelet. `fused`: in the form it samples in (U-DiT), which is
    what its paper counts, instead of the one that is trained.

    Counted as published (`published`): for most of them, images of `size` × `size` pixels are latents of 4 channels
    and an eighth of the side; 1,000 classes; learned variance, so 8 output channels. Nothing is computed.

    Raises:
        InputError: unknown name or field, or a size or number of frames that the autoencoder or the network cannot
            divide.
    """
    known = published(name)
    size = whole_number(known.size if size is None else size, "size")
    length = () if frames is None else (whole_number(frames, "frames"),)
    _check_fits(
        f"{name}, {known},",
        configured(name, known=("size", "frames", "fused"), **overrides).patch_sizes,
        size,
        length,
        known.downsampling,
    )
    with torch.device("meta"):
        net = backbone(
            name,
            classes=known.classes,
            channels=known.channels,
            learned_variance=known.learned_variance,
            text_dim=known.text_dim,
            **overrides,
        )
    ratios = BACKBONES[name].ratios
    side = size // (known.downsampling * ratios[0])
    state = (known.channels * sum(ratio**2 for ratio in ratios), *length, side, side)
    return count_cost(net.fused() if fused else net, state, bool(known.classes), known.words)


def recipe_cost(recipe: Recipe, *, fused: bool = False, adapted: bool = False) -> Cost:
    """That of a recipe's own network and state; its number of classes must be known. `fused` as of `cost`; `adapted`: with what
    the recipe freezes and adds."""
    with torch.device("meta"):
        net = recipe.build_backbone()
        if adapted:
            adapt(net, recipe.train)
    state = recipe.build_codec().layout(*recipe.data.shape).shape
    words = recipe.text.length if recipe.text else 0
    return count_cost(net.fused() if fused else net, state, bool(net.classes), words)


def _check_fits(
    what: str, patch: tuple[int, ...], size: int, length: tuple[int, ...], downsampling: int
) -> None:
    """InputError, naming what would do, unless patches of that size divide images of it, or clips of that length."""
    *tubelet, side, _ = patch
    unit = side * downsampling
    if size < 1 or size % unit:
        below = max(size, 0) // unit * unit
        others = [str(other) for other in (below, below + unit) if other]
        raise InputError(f"`size` {size}: {what} takes {', '.join(others)}")
    frames = length[0] if length else 1
    if length and not tubelet:
        raise InputError(f"`frames` {frames}: {what} is a network of images; give it a tubelet of 1 or more")
    if tubelet and (frames < 1 or frames % tubelet[0]):
        raise InputError(f"`frames` {frames}: {what} takes multiples of its tubelet, {tubelet[0]}")
