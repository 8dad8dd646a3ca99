"""What a training step executes: its operators by kind, and what autograd keeps of the forward pass.

A network is run with fake tensors: they have shapes, types and a device, the CPU, but no numbers, so
that autocast, attention and autograd do what they do in earnest, without memory and arithmetic. The
network is not compiled; data and loss are not part of it. What operators take is in `speed.py`.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from ditkit.backbones.base import Backbone
from ditkit.backbones.sections.base import BackboneSection
from ditkit.device import Precision, autocast
from ditkit.nn.around import Around, Run, Tokens, checkpointing

CPU = torch.device("cpu")
aten = torch.ops.aten

# Formulas for the operations of products and convolutions; torch's lack the CPU's fused attention.
PRODUCTS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_efficient_attention
    ],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_efficient_attention_backward
    ],
}


class Amount(NamedTuple):
    """Of one kind of operator."""

    calls: int
    size: int
    """Operations (two per multiply-add) of products and convolutions; bytes read and written by others."""


Work = dict[str, Amount]


class Operators(TorchDispatchMode):
    """Collects what runs under it: `.work` by kind of operator and, as `clock` shows them, `.seconds`."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        super().__init__()
        self.work: Work = {}
        self.seconds: dict[str, float] = {}
        self._clock = clock

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        start = self._clock()
        out = func(*args, **kwargs)
        seconds = self._clock() - start
        if func.namespace == "aten":
            kind = func._overloadpacket
            name = kind.__name__
            calls, size = self.work.get(name, (0, 0))
            self.work[name] = Amount(calls + 1, size + _size(kind, args, kwargs, out))
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        return out


class Keeping(torch.autograd.graph.saved_tensors_hooks):
    """Within it `.bytes` adds up what autograd keeps: every storage once, those of `parameters` never."""

    def __init__(self, parameters: Iterable[Tensor]):
        seen = {_storage(parameter) for parameter in parameters}
        self.bytes = 0

        def count(saved: Tensor) -> Tensor:
            if _storage(saved) not in seen:
                seen.add(_storage(saved))
                self.bytes += saved.untyped_storage().nbytes()
            return saved

        super().__init__(count, lambda saved: saved)


class Inputs(NamedTuple):
    """The inputs that a network is evaluated with."""

    state: tuple[int, ...]
    """(C, H, W), or of a clip (C, F, H, W)."""
    labelled: bool
    words: int = 0
    """Tokens of a text, for a network that reads one."""

    def make(
        self, net: nn.Module, batch: int, device: torch.device
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(x, t, cond) for `batch` images, without numbers in them."""
        cond = {}
        if self.labelled:
            cond["label"] = torch.empty(batch, dtype=torch.long, device=device)
        if self.words:
            dim: int = net.text_dim  # type: ignore[assignment]
            cond["text"] = torch.empty(batch, self.words, dim, device=device)
            cond["text_mask"] = torch.empty(batch, self.words, dtype=torch.bool, device=device)
            cond["text_pooled"] = torch.empty(batch, dim, device=device)
        return torch.empty(batch, *self.state, device=device), torch.empty(batch, device=device), cond

    def in_training(self, net: nn.Module, batch: int) -> dict[str, Any]:
        """What the network is called with besides in training."""
        config = getattr(net, "config", None)
        if not isinstance(net, Backbone) or not isinstance(config, BackboneSection):
            return {}
        shapes: dict[Any, tuple[int, ...]] = {"tokens": (config.tokens(self.state[1:]),), "state": self.state}
        drawn = {s.name: torch.empty(batch, *shapes.get(s.shape, s.shape)) for s in config.streams}
        return net.in_training(drawn)


def activations(
    net: nn.Module, inputs: Inputs, batch: int, precision: Precision, checkpoint_blocks: int = 0
) -> int:
    """Bytes that a forward pass on `batch` states keeps for the backward pass, on a CPU; where blocks are computed again also
    what the largest of them keeps meanwhile."""
    with _fake(net) as (weights, buffers):
        tensors, largest = weights | buffers, 0

        def measured(k: int, run: Run, h: Tensor, at: Tokens) -> Tensor:
            nonlocal largest
            keeping = Keeping(weights.values())
            with keeping:
                h = run(h, at)
            if k % checkpoint_blocks == 0:
                largest = max(largest, keeping.bytes)
            return h

        if checkpoint_blocks:
            _forward(net, tensors, inputs, batch, precision, measured)
        keeping = Keeping(weights.values())
        with keeping:
            again = checkpointing(checkpoint_blocks) if checkpoint_blocks else None
            _forward(net, tensors, inputs, batch, precision, again)
    return keeping.bytes + largest


def step_work(net: nn.Module, inputs: Inputs, batch: int, precision: Precision) -> Work:
    """The operators of one training step on a CPU: forward, backward, AdamW, moving average."""
    with _fake(net) as (weights, buffers):
        trained = [weight for weight in weights.values() if weight.requires_grad]
        average = [torch.empty_like(weight) for weight in trained]
        optimizer = torch.optim.AdamW(trained, fused=True)
        for weight in trained:
            weight.grad = torch.empty_like(weight)
        optimizer.step()  # makes its moments, which is no part of later steps
        optimizer.zero_grad()
        with Operators() as operators:
            out = _forward(net, weights | buffers, inputs, batch, precision)
            out.backward(torch.empty_like(out))
            optimizer.step()
            torch._foreach_lerp_(average, trained, 0.5)
    return operators.work


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def _fake(net: nn.Module) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Parameters and buffers like those of `net`, wherever it is; what is made within is fake too."""

    def like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=CPU)

    with FakeTensorMode(allow_non_fake_inputs=True):  # tables of positions are kept, and real
        weights: dict[str, Tensor] = {
            name: nn.Parameter(like(p), p.requires_grad) for name, p in net.named_parameters()
        }
        yield weights, {name: like(buffer) for name, buffer in net.named_buffers()}


def _forward(
    net: nn.Module,
    tensors: dict[str, Tensor],
    inputs: Inputs,
    batch: int,
    precision: Precision,
    around: Around | None = None,
) -> Tensor:
    named = inputs.in_training(net, batch) | ({"around": around} if around else {})
    with autocast(CPU, precision):
        return functional_call(net, tensors, inputs.make(net, batch, CPU), named)


def _size(kind: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Operations of a product; bytes moved by anything else, none where it only makes views."""
    if kind in PRODUCTS:
        return PRODUCTS[kind](*args, **kwargs, out_val=out)
    inputs = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    outputs = [value for value in tree_iter(out) if isinstance(value, Tensor)]
    shared = {_storage(tensor) for tensor in outputs} <= {_storage(tensor) for tensor in inputs}
    if outputs and shared and not kind.__name__.endswith("_"):  # add_ and its kin work in place
        return 0
    return bytes_of(inputs) + bytes_of(outputs)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
