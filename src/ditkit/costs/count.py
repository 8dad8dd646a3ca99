"""What a network costs: parameters, multiply-adds and memory, counted without computing anything.

The papers' "Gflops" are multiply-adds (MACs) of products and convolutions, counted by running the
network on the meta device; torch counts two operations for each. Memory is that of a training step
with an optimiser, AdamW by default, and a moving average: per trainable parameter one gradient and two moments, and the
activations that autograd keeps (`operators.py`).

How long a step takes is in `speed.py`; costs by a model's name are in `ditkit.costs`.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from ditkit.costs.operators import Inputs, Work, activations, bytes_of, step_work
from ditkit.device import Precision
from ditkit.errors import InputError
from ditkit.optimizers.parameters import trained
from ditkit.optimizers.size import state_bytes
from ditkit.recipe import TrainConfig

# glibc's heap holds on to more than is allocated, because kept activations lie between freed ones.
# Share of the activations, measured (docs/results.md): from 0.31 to 0.65, and 1.2 below 50 MB.
HEAP_WASTE = 0.45


class Part(NamedTuple):
    """A module without its children."""

    params: int
    """Trainable parameters."""
    macs: int
    """Multiply-adds of one forward pass of one image or clip."""


@dataclass(frozen=True)
class Memory:
    """The memory of a training step, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    """What the optimiser keeps, of AdamW two moments and its counts of steps."""
    ema: int
    """The moving averages of the trained weights."""
    activations: int
    """What autograd keeps of one forward pass for the backward pass, as a CPU computes it."""
    accumulated: bool = False
    """Whether a step is made of several forward passes: gradients then lie beside activations."""

    @property
    def peak(self) -> int:
        """Allocated at the worst moment. Within one pass gradients come as activations go."""
        kept = self.weights + self.optimizer + self.ema
        if self.accumulated:
            return kept + self.gradients + self.activations
        return kept + max(self.gradients, self.activations)

    @property
    def resident(self) -> int:
        """What the process is likely to take on Linux: the peak and what its heap wastes."""
        return self.peak + round(HEAP_WASTE * self.activations)


@dataclass(frozen=True)
class Cost:
    """The cost of a network at one size of its state. `ditkit.cost(name)` and `count_cost` make it."""

    params: int
    """Trainable parameters."""
    macs: int
    """Multiply-adds of products and convolutions, of one forward pass of one image or clip."""
    modules: dict[str, Part]
    """Both by module, in the network's order; the parts add up. Repeated modules are one: `blocks.*.mlp.*`.
    A name stands for what the module does itself, without those below it; "" is the network."""
    _net: nn.Module = field(repr=False, compare=False)
    _inputs: Inputs = field(repr=False, compare=False)

    @property
    def frozen(self) -> int:
        """Parameters that are not trained."""
        return sum(p.numel() for p in self._net.parameters() if not p.requires_grad)

    def memory(
        self,
        batch: int,
        precision: Precision = "auto",
        micro_batch: int | None = None,
        *,
        training: TrainConfig | None = None,
    ) -> Memory:
        """Of training with `batch` images a step, `micro_batch` of them per forward pass; with the optimiser, the
        averages and the checkpointed blocks of `training`, by default AdamW, one and none. InputError as of the optimiser.

        As `ditkit train` does it on a CPU, not compiled: float32 weights, up to 512 tokens attention
        written out, whose weights are kept (a GPU's fused kernel does not keep them: less there).
        """
        per_pass = min(batch, micro_batch or batch)
        changed = trained(self._net)
        further = len(training.averages) if training else 0
        gradients, weights = bytes_of(changed), bytes_of([*self._net.parameters(), *self._net.buffers()])
        return Memory(
            weights=weights,
            gradients=gradients,
            optimizer=state_bytes(changed, training or TrainConfig()),
            ema=(1 + further) * gradients + bytes_of([*self._net.buffers()]),
            activations=activations(
                self._net,
                self._inputs,
                _checked(per_pass),
                precision,
                training.checkpoint_blocks if training else 0,
            ),
            accumulated=per_pass < batch,
        )

    def work(self, batch: int, precision: Precision = "auto") -> Work:
        """The operators of one training step on a CPU, for `speed.Rates`."""
        return step_work(self._net, self._inputs, _checked(batch), precision)


def count_cost(net: nn.Module, state: tuple[int, ...], labelled: bool, words: int = 0) -> Cost:
    """Cost of `net` on a state (C, H, W) or (C, F, H, W), with a label, with `words` tokens of a text. It runs with meta
    tensors in place of its weights: nothing is computed or copied, and the network stays where it is."""
    inputs = Inputs(state, labelled, words)
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    weights = {name: value.to("meta") for name, value in tensors.items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(net, weights, inputs.make(net, 1, torch.device("meta")))
    params = sum(p.numel() for p in net.parameters() if p.requires_grad)
    modules = _by_module(
        net, {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    )
    return Cost(params, counter.get_total_flops() // 2, modules, net, inputs)


def _checked(batch: int) -> int:
    if batch < 1:
        raise InputError(f"`batch` {batch}: give at least 1 image")
    return batch


def _by_module(net: nn.Module, counts: dict[str, int]) -> dict[str, Part]:
    """Every module's own share, from counts that include what is below it (names begin with the class)."""
    whole = {name.partition(".")[2]: macs for name, macs in counts.items() if name != "Global"}
    macs: Counter[str] = Counter(whole)
    for name, count in whole.items():
        above = name
        while above:
            above = above.rpartition(".")[0]
            if above in whole:  # a ModuleList is never called and has no count
                macs[above] -= count
                break
    params: Counter[str] = Counter()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            params[name.rpartition(".")[0]] += parameter.numel()
    grouped: defaultdict[str, list[Part]] = defaultdict(list)
    for name, _ in net.named_modules():
        if params[name] or macs[name]:
            group = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
            grouped[group].append(Part(params[name], macs[name]))
    return {
        name: Part(sum(part.params for part in parts), sum(part.macs for part in parts))
        for name, parts in grouped.items()
    }
