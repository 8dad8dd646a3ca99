"""What a process sends to the others, counted at the collectives that torch.distributed is called for."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ditkit.costs.plan import Moved, in_a_ring

KINDS = {
    "allreduce_": "all_reduce",
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
}
"""torch's operators that move a step's tensors, and what they do; others, of a few numbers, are not counted."""


class Sent(TorchDispatchMode):
    """Within it, the bytes that this process would send in a ring; `.moved` has them by kind of collective."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = dict.fromkeys(KINDS.values(), 0)

    @property
    def moved(self) -> Moved:
        return Moved(**self._bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = KINDS.get(func._opname) if func.namespace == "c10d" else None
        if kind is not None:
            group = next(value for value in args if isinstance(value, torch.ScriptObject))
            whole = max(value.numel() * value.element_size() for value in _tensors(args))
            times = 2 if kind == "all_reduce" else 1
            self._bytes[kind] += in_a_ring(times * whole, dist.ProcessGroup.unbox(group).size())
        return func(*args, **(kwargs or {}))


def _tensors(args: Any) -> list[Tensor]:
    return [
        value
        for some in args
        for value in (some if isinstance(some, list | tuple) else [some])
        if isinstance(value, Tensor)
    ]
