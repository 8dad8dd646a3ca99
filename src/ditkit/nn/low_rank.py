"""Low-rank additions to linear layers (LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021).

A layer of weight W (out, in) gets two thin matrices, `lora_down` A (rank, in) and `lora_up` B (out, rank), and computes with
W + scale · B A. B begins at 0, so at first the layer is what it was. W and its bias keep their names.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

DOWN, UP = "lora_down", "lora_up"


class LowRank(nn.Linear):
    """(..., in) -> (..., out): a linear layer, whose parameters it shares, with an addition of that rank."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float):
        """`lora_down` is uniform within ±1/√in, as the layer's own weight is in torch."""
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias, self.scale = layer.weight, layer.bias, scale
        bound, new = layer.in_features**-0.5, layer.weight.new_empty  # of its type, where it is
        self.lora_down = nn.Parameter(new(rank, layer.in_features))
        self.lora_up = nn.Parameter(new(layer.out_features, rank))
        nn.init.uniform_(self.lora_down, -bound, bound)
        nn.init.zeros_(self.lora_up)

    def forward(self, x: Tensor) -> Tensor:
        added = F.linear(F.linear(x, self.lora_down), self.lora_up)
        return F.linear(x, self.weight, self.bias) + self.scale * added


def whole_weight(layer: nn.Linear) -> Tensor:
    """The weight (out, in) that a layer computes with, its addition in it."""
    if isinstance(layer, LowRank):
        return layer.weight + layer.scale * (layer.lora_up @ layer.lora_down)
    return layer.weight


def is_addition(name: str) -> bool:
    """Whether a parameter of that name is a part of an addition."""
    return name.rpartition(".")[2] in (DOWN, UP)


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The state dict of the network without additions that computes the same."""
    found = {name: value for name, value in state.items() if not is_addition(name)}
    for name, up in state.items():
        layer, _, last = name.rpartition(".")
        if last == UP:
            found[f"{layer}.weight"] = found[f"{layer}.weight"] + scale * (up @ state[f"{layer}.{DOWN}"])
    return found
