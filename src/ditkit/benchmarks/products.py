"""The rate at which this machine multiplies matrices of a network's own shapes: what its steps are held against."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ditkit.backbones import DiTConfig
from ditkit.benchmarks.latents import SIDE
from ditkit.device import Precision


class Products(NamedTuple):
    """The products of all blocks' layers, and nothing else."""

    run: Callable[[], object]
    flops: int
    """Operations of a call, two per multiply-add."""


def products(backbone: DiTConfig, rows: int, precision: Precision) -> Products:
    """Of a forward pass of so many rows of tokens: in each block queries, keys and values, what follows attention, and both
    layers of the MLP. Factors are of the precision beforehand; nothing is cast."""
    width, hidden = backbone.width, round(backbone.width * backbone.mlp_ratio)
    tokens = rows * (SIDE // backbone.patch) ** 2
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]
    stream = torch.Generator().manual_seed(0)
    factors = [
        tuple(torch.randn(size, generator=stream).to(dtype) for size in ((tokens, into), (out, into), (out,)))
        for into, out in shapes
    ]

    @torch.no_grad()
    def run() -> None:
        for _ in range(backbone.depth):
            for x, weight, bias in factors:
                F.linear(x, weight, bias)

    macs = tokens * backbone.depth * sum(into * out for into, out in shapes)
    return Products(run, 2 * macs)
