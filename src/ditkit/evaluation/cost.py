"""What a network costs: parameters, and multiply-adds counted by running it on the meta device.

The papers' "Gflops" are multiply-adds (MACs) of products and convolutions; torch counts two
operations for each.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """Of one forward pass of one image."""

    params: int
    """Trainable parameters."""
    macs: int
    """Multiply-adds of products and convolutions."""


def count_cost(net: nn.Module, state: tuple[int, ...], labelled: bool) -> Cost:
    """Cost of `net` on a state (C, H, W). It runs with meta tensors in place of its weights: nothing is
    computed or copied, and the network stays where it is."""
    with torch.device("meta"):
        x, t = torch.empty(1, *state), torch.empty(1)
        cond = {"label": torch.empty(1, dtype=torch.long)} if labelled else {}
    weights = {name: value.to("meta") for name, value in net.state_dict().items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(net, weights, (x, t, cond))
    params = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return Cost(params, counter.get_total_flops() // 2)
