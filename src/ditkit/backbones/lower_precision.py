"""What is sampled with, made of a network that was trained."""

import copy

import torch
from torch import nn

from ditkit.backbones.base import Backbone

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def sampled(net: Backbone, bf16: bool) -> Backbone:
    """The network in the form that samples are drawn with: `fused`, and where its products are computed in bf16 with their weights
    in it. Itself where there is nothing to change."""
    made = net.fused()
    return with_bf16_weights(made) if bf16 else made


def with_bf16_weights(net: Backbone) -> Backbone:
    """A copy to sample with under bf16 autocast, that gives the same bits: it rounds the weights of products once, where autocast
    does so at every evaluation."""
    made = copy.deepcopy(net)
    for module in made.modules():
        # A depthwise convolution computes in float32 on a CPU (`kernels.depthwise`).
        if isinstance(module, PRODUCTS) and getattr(module, "groups", 1) == 1:
            module.to(torch.bfloat16)
    return made
