"""The DiT paper's central figure in miniature: does Fréchet distance follow the network's MACs?

Eleven DiTs (width and depth XS to L, patch 7, 4, 2: 2.7 to 291 MMACs) and a convolutional U-Net with as
many MACs as S/2 see the same images of Fashion-MNIST in the same order with the same noise, at one
constant learning rate, as in the paper (Peebles & Xie, 2023: figures 2, 8, 9 and 10). Three questions:

- Does a network with more MACs, whether from width, depth or more tokens, score better?
- Is a larger network the better use of training compute?
- Can a small network make up for its size by more sampling steps?
"""

import torch

from ditkit.backbones import DiTConfig, UNetConfig
from ditkit.evaluation.cost import count_cost
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.studies.cells import Cell, Point

SIZES = {"XS": (64, 3, 2), "S": (96, 4, 3), "M": (128, 6, 4), "L": (192, 6, 6)}  # width, depth, heads
PATCHES = (2, 4, 7)
TOO_LARGE = {"L/2"}  # 560 MMACs: half of the whole study
BACKBONES = {
    f"{size}/{patch}": DiTConfig(width=width, depth=depth, heads=heads, patch=patch)
    for size, (width, depth, heads) in SIZES.items()
    for patch in PATCHES
    if f"{size}/{patch}" not in TOO_LARGE
} | {"UNet": UNetConfig(width=16, multipliers=(1, 3, 3), depth=2)}  # 116.7 MMACs; S/2 has 116.6

BUDGETS = (25_000, 50_000, 100_000)  # training images at which every network is scored
STEPS = (3, 5, 10, 25, 50)  # of Heun's method, two evaluations each
STANDARD = 25


def cells() -> dict[str, Cell]:
    """The largest first, so that processes that share them end together."""
    points = [Point(images=images, sampler="heun", steps=STANDARD) for images in BUDGETS]
    points += [Point(images=BUDGETS[-1], sampler="heun", steps=steps) for steps in STEPS if steps != STANDARD]
    train = {
        "images": BUDGETS[-1],
        "lr": 1e-3,
        "schedule": "constant",
        "checkpoint_images": 25_000,
        "preview_images": BUDGETS[-1],
    }
    base = recipe("fashion-sit").replace(train=train)
    found = {}
    for name, backbone in BACKBONES.items():
        # Blocks of a U-Net differ in shape: compiling each would take longer than it saves.
        compiled = {"compile": backbone.kind != "UNet"}
        found[name.replace("/", "-")] = Cell(
            base.replace(name=f"scaling-{name}", backbone=backbone, train=compiled), tuple(points)
        )
    return dict(sorted(found.items(), key=lambda item: -macs(item[1].recipe)))


def macs(recipe: Recipe) -> int:
    """Multiply-adds of one evaluation of one image."""
    size, channels = recipe.data.size, recipe.data.channels
    with torch.device("meta"):
        net = recipe.build_backbone()
    return count_cost(net, (channels, size, size), labelled=True).macs
