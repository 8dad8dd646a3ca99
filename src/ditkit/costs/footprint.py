"""What a training step keeps in memory: whole bytes, counted while a step runs, for any number of images.

Every storage is counted once, from when an operator makes it until nothing refers to it, by a dispatch mode. With fake
tensors, which have no numbers, nothing is computed; with real ones the same mode measures a real step. What a
step with m images keeps after each of its operators is a + b m, so two runs, with 2 and with 3 images, give both a and b
for every operator, and the most over all operators is exact for every m. (With 1 image torch leaves out some copies.)
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.hooks import RemovableHandle

from ditkit.costs.operators import PRODUCTS

DEVICE = torch.ops.prim.device.default


class Moment(NamedTuple):
    """What is alive after an operator, in bytes."""

    gradients: int
    """Of parameters."""
    others: int


class Live(TorchDispatchMode):
    """Follows the storages that are made within it: `.moments`, one for each operator, and `.products`, the operations of
    products and convolutions, two per multiply-add."""

    def __init__(self, outside: Iterable[Tensor] = ()) -> None:
        """Storages of `outside`, such as weights, are never counted."""
        super().__init__()
        self._outside = {tensor.untyped_storage()._cdata for tensor in outside}
        self.moments: list[Moment] = []
        self.products = 0
        self._alive: dict[int, Any] = {}
        self._bytes = self._gradients = 0

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Count these, too, from now until nothing refers to them."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            place, size = storage._cdata, storage.nbytes()
            if place in self._alive or place in self._outside:
                continue

            def gone(_: Any, place: int = place, size: int = size) -> None:
                del self._alive[place]
                self._bytes -= size

            self._alive[place] = weakref.ref(storage, gone)
            self._bytes += size

    def follow_gradients(self, parameters: Iterable[Tensor]) -> list[RemovableHandle]:
        """Count what these parameters' gradients take by itself, from when each is there; they are to stay. What ends it."""
        known: set[int] = set()

        def there(parameter: Tensor) -> None:
            if id(parameter) not in known and parameter.grad is not None:
                known.add(id(parameter))
                self._gradients += parameter.grad.untyped_storage().nbytes()

        return [parameter.register_post_accumulate_grad_hook(there) for parameter in parameters]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE and isinstance(args[0], FakeTensor):  # which autograd asks for all the time
            return args[0].fake_device
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in PRODUCTS:
            self.products += PRODUCTS[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        self.follow(value for value in tree_iter(out) if isinstance(value, Tensor))
        self.moments.append(Moment(self._gradients, self._bytes - self._gradients))
        return out


class Line(NamedTuple):
    """So many bytes, or operations, for a number of images."""

    constant: int
    each: int
    """For every image."""

    def at(self, images: int) -> int:
        return self.constant + self.each * images

    @classmethod
    def through(cls, two: int, three: int) -> "Line":
        """By what 2 and 3 images take."""
        each = three - two
        return cls(two - 2 * each, each)


@dataclass(frozen=True)
class Pass:
    """What a forward and a backward pass keep besides weights, and what they compute."""

    joint: tuple[Line, ...]
    """After each operator, gradients among it; the largest counts."""
    others: tuple[Line, ...]
    """The same without gradients."""
    products: Line
    """Operations of products and convolutions, two per multiply-add, those that are recomputed among them."""

    def activations(self, images: int) -> int:
        """Bytes at the worst moment besides weights and gradients: what autograd keeps, and what is being worked on."""
        return max(line.at(images) for line in self.others)

    def with_gradients(self, images: int) -> int:
        """The same with gradients, which come as activations go, in a step of one pass."""
        return max(line.at(images) for line in self.joint)


def two_runs(two: Live, three: Live) -> Pass:
    """By a step with 2 images and the same with 3. ValueError when they did not run the same operators."""
    if len(two.moments) != len(three.moments):
        raise ValueError("a step with 3 images runs other operators than one with 2")
    pairs = list(zip(two.moments, three.moments, strict=True))
    return Pass(
        _largest(Line.through(sum(a), sum(b)) for a, b in pairs),
        _largest(Line.through(a.others, b.others) for a, b in pairs),
        Line.through(two.products, three.products),
    )


def _largest(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Those of which no other is larger for every number of images."""
    kept: list[Line] = []
    for line in sorted(set(lines), reverse=True):
        if not kept or line.each > kept[-1].each:
            kept.append(line)
    return tuple(kept)


@dataclass(frozen=True)
class Footprint:
    """What a training keeps, in bytes."""

    weights: int
    """Of the network, its buffers among them."""
    auxiliary: int
    """Weights of what is trained beside it, the modules of terms of the loss."""
    gradients: int
    optimizer: int
    averages: int
    """Moving averages of the network and of what is trained beside it."""
    units: tuple[int, ...] = field(repr=False)
    """Of the network's parameters, those of each part that is sharded by itself: the repeated blocks, then the rest."""

    @property
    def parameters(self) -> int:
        """Of all parameters: what is gathered where they are sharded."""
        return sum(self.units) + self.auxiliary

    @property
    def kept(self) -> int:
        """What is there between steps, and is written in a checkpoint."""
        return self.weights + self.auxiliary + self.optimizer + self.averages
