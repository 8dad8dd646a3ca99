"""What is trained on and evaluated at: made-up latents, as ImageNet's at 256 pixels behind Stable Diffusion's autoencoder."""

import torch
from torch import Tensor

from ditkit.backbones import BackboneConfig, DiTConfig
from ditkit.device import Precision
from ditkit.recipe import Recipe
from ditkit.recipes import recipe as named_recipe

CPU = torch.device("cpu")
CHANNELS, SIDE, CLASSES = 4, 32, 1000
TINY = DiTConfig(width=32, depth=2, heads=2, patch=8)
"""A network to try things with; its speed says nothing."""
TIME, GUIDANCE = 0.5, 1.5


def recipe_with(backbone: BackboneConfig, batch: int, precision: Precision) -> Recipe:
    """DiT's settings, with another network and batch."""
    train = {"batch": batch, "precision": precision}
    return named_recipe("imagenet256-dit-xl2").replace(backbone=backbone, train=train)


def latents(size: int) -> tuple[Tensor, Tensor]:
    """So many latents, (size, 4, 32, 32), and their labels."""
    stream = torch.Generator().manual_seed(0)
    made = torch.randn(size, CHANNELS, SIDE, SIDE, generator=stream)
    return made, torch.randint(CLASSES, (size,), generator=stream)
