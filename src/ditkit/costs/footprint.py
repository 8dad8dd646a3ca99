"""What a training step keeps in memory: whole bytes, counted while a step runs, for any number of images.

Every storage is counted once, from when an operator makes it until nothing refers to it, by a dispatch mode. With fake
tensors, which have no numbers, nothing is computed; with real ones the same mode measures a real step. A step is run with a
prime number of images that divides no size of the network: storages of so many bytes that it divides them grow with the
images, and all others do not depend on them. So one run gives for each of its operators what is alive after it, a + b m
for m images, and the most over all operators is exact for every m.
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


class Line(NamedTuple):
    """So many bytes, or operations, for a number of images."""

    constant: int
    each: int
    """For every image."""

    def at(self, images: int) -> int:
        return self.constant + self.each * images

    def plus(self, constant: int) -> "Line":
        return Line(self.constant + constant, self.each)


class Moment(NamedTuple):
    """What is alive after an operator, in bytes."""

    gradients: int
    """Of parameters."""
    others: Line


class Live(TorchDispatchMode):
    """Follows the storages that are made within it: `.moments`, one for each operator, and `.products`, the operations of
    products and convolutions, two per multiply-add."""

    def __init__(self, images: int, outside: Iterable[Tensor] = ()) -> None:
        """A step of so many images, a prime number to tell what grows with them, and 1 to count all. Storages of `outside`,
        such as weights, are never counted."""
        super().__init__()
        self.moments: list[Moment] = []
        self._images = images
        self._outside = {tensor.untyped_storage()._cdata for tensor in outside}
        self._alive: dict[int, Any] = {}
        self._constant = self._growing = self._gradients = 0
        self._products = [0, 0]

    @property
    def products(self) -> Line:
        return Line(self._products[0], self._products[1] // self._images)

    def counted(self) -> "Pass":
        """What was kept and computed."""
        return Pass(
            _largest(moment.others.plus(moment.gradients) for moment in self.moments),
            _largest(moment.others for moment in self.moments),
            self.products,
        )

    def _count(self, size: int) -> None:
        if size % self._images:
            self._constant += size
        else:
            self._growing += size

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Count these, too, from now until nothing refers to them."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            place, size = storage._cdata, storage.nbytes()
            if place in self._alive or place in self._outside:
                continue

            def gone(_: Any, place: int = place, size: int = size) -> None:
                del self._alive[place]
                self._count(-size)

            self._alive[place] = weakref.ref(storage, gone)
            self._count(size)

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
            count = PRODUCTS[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
            self._products[count % self._images == 0] += count
        self.follow(value for value in tree_iter(out) if isinstance(value, Tensor))
        others = Line(self._constant - self._gradients, self._growing // self._images)
        self.moments.append(Moment(self._gradients, others))
        return out


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

    def gathered(self, bf16: bool) -> int:
        """What is gathered in a pass where parameters are sharded: the repeated blocks in the forward and in the backward pass,
        as bf16 where products are of bf16; the rest once."""
        *blocks, rest = self.units
        return 2 * sum(blocks) // (2 if bf16 else 1) + rest + self.auxiliary

    @property
    def kept(self) -> int:
        """What is there between steps, and is written in a checkpoint."""
        return self.weights + self.auxiliary + self.optimizer + self.averages
