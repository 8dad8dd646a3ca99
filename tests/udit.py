"""What the tests of U-DiT share: small networks that say something, inputs, a pipeline."""

import torch
from conftest import CPU

from ditkit.backbones import BACKBONES, backbone
from ditkit.pipeline import Pipeline
from ditkit.recipes import recipe

SMALL = {"width": 8, "heads": 2, "depth": (1, 1, 2, 1, 1)}


def randomised(name="U-DiT", **fields):
    """Small, 10 classes, 2 channels, every parameter random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = backbone(name, **({"classes": 10, "channels": 2} | SMALL | fields))
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def inputs(n=2, height=8, width=8, channels=2):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, height, width, generator=generator)
    return x, torch.rand(n, generator=generator), {"label": torch.arange(n)}


def index(*indices):
    return (torch.tensor(indices, dtype=torch.float64) + 1) / 1000


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def small_recipe(**backbone_fields):
    """digits, with a U-DiT that trains in seconds."""
    network = BACKBONES["U-DiT"].model_copy(update=SMALL | backbone_fields)
    return recipe("digits").replace(backbone=network, sample={"steps": 2}, train={"precision": "fp32"})


def small_pipe(**backbone_fields):
    chosen = small_recipe(**backbone_fields)
    net = chosen.build_backbone().eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return Pipeline(chosen, net, chosen.build_codec(), CPU)
