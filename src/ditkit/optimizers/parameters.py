"""What an optimiser takes steps of."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

MADE_OF_THE_CONDITION = "modulation"
"""The name of layers in blocks that read the condition and not the tokens."""


class Parameters(list[nn.Parameter]):
    """Parameters, of which some are matrices that blocks multiply their tokens by."""

    matrices: list[nn.Parameter] | None
    """None where there are no blocks to tell."""

    def __init__(self, parameters: Iterable[nn.Parameter], matrices: list[nn.Parameter] | None = None):
        super().__init__(parameters)
        self.matrices = matrices


def trained(net: nn.Module, *others: nn.Module) -> Parameters:
    """Those of a network that are trained, and of other modules."""
    found = [p for module in (net, *others) for p in module.parameters() if p.requires_grad]
    blocks = getattr(net, "repeated", None)
    return Parameters(found, None if blocks is None else [p for block in blocks for p in _matrices(block)])


def _matrices(block: nn.Module) -> list[nn.Parameter]:
    """The weights of a block's linear layers that are trained, without those that read only the condition."""
    return [
        weight
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
        and isinstance(weight := layer.weight, nn.Parameter)
        and weight.requires_grad
        and MADE_OF_THE_CONDITION not in name.split(".")
    ]
