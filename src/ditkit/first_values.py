"""Networks as they begin: the first value of each parameter is a function of the seed and the parameter's name.

So a parameter begins with the same numbers in a deeper network, beside other parts, and wherever only a piece of it is.

A constructor fills its parameters as it likes, with `torch.nn.init` for instance. What is done to each is recorded, and
done once more with random numbers of the parameter's own.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ditkit.device import check_memory
from ditkit.randomness import generator

Network = TypeVar("Network", bound=nn.Module)

aten = torch.ops.aten
UNIFORM, NORMAL, FILL = aten.uniform_.default, aten.normal_.default, aten.fill_.Scalar
WHOLE = (UNIFORM, NORMAL, FILL, aten.zero_.default)
"""What these write does not depend on what was there."""
MADE_FILLED: dict[Any, Callable[..., tuple[Any, ...]]] = {
    aten.zeros.default: lambda size: (FILL, 0.0),
    aten.ones.default: lambda size: (FILL, 1.0),
    aten.full.default: lambda size, value: (FILL, value),
    aten.rand.default: lambda size: (UNIFORM,),
    aten.randn.default: lambda size: (NORMAL,),
}
"""What makes a tensor and fills it: which of these fills it is, and with which numbers."""


class Write(NamedTuple):
    """An operation that writes to a tensor, or a view of it, by numbers alone."""

    operation: Any
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    """Of the view, in its storage."""
    numbers: tuple[Any, ...]

    def repeat(self, parameter: Tensor, random: np.random.Generator) -> None:
        """Do it to a parameter; uniform and normal numbers are those of `random`, the same on every machine."""
        view = torch.as_strided(parameter, self.size, self.stride, self.offset)
        if self.operation is UNIFORM:
            low, high = self.numbers
            drawn = torch.from_numpy(random.random(self.size, np.float32))
            view.copy_(drawn.mul_(high - low).add_(low))
        elif self.operation is NORMAL:
            mean, std = self.numbers
            drawn = torch.from_numpy(random.standard_normal(self.size, np.float32))
            view.copy_(drawn.mul_(std).add_(mean))
        else:
            self.operation(view, *self.numbers)


class Recorder(TorchDispatchMode):
    """Records what fills the tensors that are made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._writes: dict[
            int, list[Write] | None
        ] = {}  # by storage; None: something that cannot be repeated
        self._alive: list[Any] = []  # these storages: another could get the number of one that is gone

    def writes(self, parameter: Tensor) -> list[Write] | None:
        """What has to be done to a parameter to fill it; None where that is not known, as where others' values were
        copied into it."""
        return self._writes.get(_storage(parameter))

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if operation in MADE_FILLED:
            fill, *numbers = MADE_FILLED[operation](*args)
            self._record(fill, result, tuple(numbers), {})
        for place, argument in enumerate(operation._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            if place == 0:
                self._record(operation, args[0], args[1:], kwargs or {})
            elif argument.name in (kwargs or {}):  # out=
                self._writes[_storage(kwargs[argument.name])] = None
        return result

    def _record(self, operation: Any, view: Tensor, others: tuple[Any, ...], named: dict[str, Any]) -> None:
        place = _storage(view)
        random = torch.Tag.nondeterministic_seeded in operation.tags
        repeatable = all(isinstance(value, int | float) for value in others) and not any(
            value is not None for value in named.values()
        )
        if not repeatable or (random and operation not in (UNIFORM, NORMAL)):
            self._writes[place] = None
            return
        if random:
            others += (0.0, 1.0)[len(others) :]  # torch's defaults
        write = Write(operation, tuple(view.shape), view.stride(), int(view.storage_offset()), others)
        whole = view.numel() * view.element_size() == view.untyped_storage().nbytes()
        if operation in WHOLE and whole:
            self._writes[place] = [write]
            self._alive.append(view.untyped_storage())
        elif (before := self._writes.get(place)) is not None:
            before.append(write)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def build(make: Callable[[], Network], seed: int, smaller: str, prefix: str = "") -> Network:
    """The network that `make` makes, on the default device, with the first values of a seed.

    What a constructor does not fill by numbers alone is drawn from torch's generator, seeded alike, in its order.
    InputError when the weights are larger than this machine's memory; `smaller` names what makes them smaller.

    Args:
        prefix: goes before the parameters' names, for a network that is part of another.
    """
    if torch.get_default_device().type != "meta":
        check_memory(make, smaller)
    with torch.random.fork_rng(devices=[]), Recorder() as recorder:
        torch.manual_seed(seed)
        network = make()
    for name, parameter in network.named_parameters():
        if not parameter.is_meta:
            fill(parameter, recorder.writes(parameter), seed, prefix + name)
    return network


@torch.no_grad()
def fill(parameter: Tensor, writes: list[Write] | None, seed: int, name: str) -> None:
    """Fill a parameter with the first values of its name; without writes it keeps what it has."""
    place = int.from_bytes(blake2b(name.encode(), digest_size=8).digest())
    random = generator(seed, place, "weights")
    for write in writes or ():
        write.repeat(parameter, random)
