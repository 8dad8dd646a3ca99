"""What an optimiser keeps beside the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ditkit.chosen import chosen
from ditkit.optimizers import OPTIMIZERS
from ditkit.optimizers.parameters import Parameters

if TYPE_CHECKING:
    from ditkit.recipe import Training


def state_bytes(parameters: Iterable[Tensor], config: Training) -> int:
    """Bytes that the recipe's optimiser keeps of these parameters, wherever they are: it takes a step of one tensor of each shape,
    on the CPU. InputError as of the optimiser."""
    found = 0
    matrices = {id(p) for p in getattr(parameters, "matrices", None) or ()}
    for (shape, dtype, matrix), count in Counter(
        (p.shape, p.dtype, id(p) in matrices) for p in parameters
    ).items():
        parameter = nn.Parameter(torch.zeros(shape, dtype=dtype, device="cpu"))
        parameter.grad = torch.zeros_like(parameter)
        optimizer = chosen(OPTIMIZERS, config.optimizer)(
            Parameters([parameter], [parameter] * matrix), config
        )
        with torch.compiler.set_stance("force_eager"):  # one step of each shape is not worth compiling
            optimizer.step()
        found += count * sum(_bytes(value) for value in optimizer.state[parameter].values())
    return found


def _bytes(value: Any) -> int:
    """Of a tensor, or of those that it is made of; numbers are no memory to speak of."""
    if not isinstance(value, Tensor):
        return 0
    if type(value) is not Tensor and hasattr(value, "__tensor_flatten__"):
        return sum(_bytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    return value.numel() * value.element_size()
