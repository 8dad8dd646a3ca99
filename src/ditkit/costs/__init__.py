"""Costs by name: what a named network or a recipe costs (counted by `costs.count`).

cost = ditkit.cost("DiT-XL/2", size=256)
cost.params, cost.macs      # 674,834,720 and 118.62 G, as printed in the paper
cost.memory(batch=16).peak  # bytes
"""

from collections.abc import Iterator

import torch

from ditkit.backbones import Backbone, backbone
from ditkit.costs.count import Cost, count_cost
from ditkit.errors import InputError
from ditkit.recipe import Recipe

# A named network is taken as DiT and SiT were published: latents of an autoencoder, 1,000 classes, an
# output for the variance.
CHANNELS, DOWNSAMPLING, CLASSES = 4, 8, 1000


def cost(name: str, size: int = 256, *, fused: bool = False, **overrides) -> Cost:
    """Parameters, multiply-adds and memory of a network by name, a key of `BACKBONES`; `overrides` are fields of
    its configuration, such as conditioning="in_context". `fused`: in the form it samples in (U-DiT), which is
    what its paper counts, instead of the one that is trained.

    Counted as published for ImageNet: images of `size` x `size` pixels are latents of 4 channels and an
    eighth of the side; 1,000 classes; learned variance, so 8 output channels. Nothing is computed.

    Raises:
        InputError: unknown name or field, or a size that the autoencoder or the network cannot divide.
    """
    with torch.device("meta"):
        net = backbone(name, classes=CLASSES, channels=CHANNELS, learned_variance=True, **overrides)
    if not _fits(net, size):
        others = ", ".join(map(str, _fitting(net, size)))
        raise InputError(
            f"--size {size}: {name} behind an autoencoder of factor {DOWNSAMPLING} takes {others}"
        )
    side = size // DOWNSAMPLING
    return count_cost(net.fused() if fused else net, (CHANNELS, side, side), labelled=True)


def recipe_cost(recipe: Recipe, *, fused: bool = False) -> Cost:
    """That of a recipe's own network and state; its number of classes must be known. `fused` as of `cost`."""
    with torch.device("meta"):
        net = recipe.build_backbone()
    state = recipe.build_codec().layout(recipe.data.size, recipe.data.size).shape
    words = recipe.text.length if recipe.text else 0
    return count_cost(net.fused() if fused else net, state, bool(net.classes), words)


def _fits(net: Backbone, size: int) -> bool:
    if size < 1 or size % DOWNSAMPLING:
        return False
    try:
        net.check_size(size // DOWNSAMPLING, size // DOWNSAMPLING)
    except InputError:
        return False
    return True


def _fitting(net: Backbone, size: int) -> Iterator[int]:
    """The nearest sizes below and above that would do."""
    yield from [smaller for smaller in range(size - 1, 0, -1) if _fits(net, smaller)][:1]
    larger = max(size, 0) + 1
    while not _fits(net, larger):
        larger += 1
    yield larger
