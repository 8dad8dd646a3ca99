"""How long a training step will take here: its operators times this machine's rates.

A roofline by kind of operator: seconds = a · calls + b · size, where the size is the operations of a
product or the bytes any other operator moves. `calibrate` finds a and b of every kind by timing the
operators of two training steps, a small and a larger one, of one transformer block and one block of a
U-Net. A kind that neither has is taken as the average product, or the average of all others. Python
and autograd add a fixed time per operator.
"""

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ditkit.costs.operators import CPU, PRODUCTS, Amount, Operators, Work
from ditkit.device import Precision, autocast
from ditkit.nn.blocks import AdaLNZeroBlock
from ditkit.nn.convolutions import ResidualBlock

REPEATS = 3
SMALL = {"images": 16, "width": 128, "side": 8, "channels": 64}
LARGE = {"images": 8, "width": 384, "side": 16, "channels": 128}
PRODUCT_NAMES = {kind.__name__ for kind in PRODUCTS}

Clock = Callable[[], float]


class Rate(NamedTuple):
    """Of one kind of operator."""

    per_call: float
    """Seconds."""
    per_size: float
    """Seconds per operation of a product, or per byte."""


class Rates(NamedTuple):
    """Of this machine, at one precision and number of threads."""

    kinds: dict[str, Rate]
    product: Rate
    """The average product or convolution."""
    other: Rate
    """The average of all other operators."""
    overhead: float
    """Seconds between two operators: Python, modules, autograd."""

    def seconds(self, work: Work) -> float:
        """That `work` is likely to take."""
        total = 0.0
        for name, (calls, size) in work.items():
            rate = self.kinds.get(name) or (self.product if name in PRODUCT_NAMES else self.other)
            total += calls * (rate.per_call + self.overhead) + size * rate.per_size
        return total


def calibrate(precision: Precision = "auto", clock: Clock = time.perf_counter) -> Rates:
    """This CPU's rates with torch's present number of threads, measured in a second or two.

    `clock`: `time.process_time` measures the processor's time instead, which for one thread is what an
    idle machine would take, whatever else runs here.
    """
    (small_work, small, whole), (large_work, large, _) = (
        _timed(size, precision, clock) for size in (SMALL, LARGE)
    )
    kinds = {
        name: _line((small_work[name], small[name]), (large_work[name], large[name]))
        for name in small.keys() & large.keys()
    }

    def average(names: Iterable[str]) -> Rate:
        named = set(names)
        return _line(_total(small_work, small, named), _total(large_work, large, named))

    products = kinds.keys() & PRODUCT_NAMES
    calls = sum(amount.calls for amount in small_work.values())
    overhead = max(0.0, whole - sum(small.values())) / calls
    return Rates(kinds, average(products), average(kinds.keys() - products), overhead)


def _line(small: tuple[Amount, float], large: tuple[Amount, float]) -> Rate:
    """The a, b >= 0 of seconds = a · calls + b · size through two measurements."""
    ((calls, size), seconds), ((more_calls, more_size), more_seconds) = small, large
    if not more_size:
        return Rate(more_seconds / more_calls, 0.0)
    if determinant := calls * more_size - more_calls * size:
        per_call = (seconds * more_size - more_seconds * size) / determinant
        per_size = (calls * more_seconds - more_calls * seconds) / determinant
        if per_call >= 0 and per_size >= 0:
            return Rate(per_call, per_size)
    return Rate(0.0, more_seconds / more_size)


def _total(work: Work, seconds: dict[str, float], names: set[str]) -> tuple[Amount, float]:
    amount = Amount(sum(work[name].calls for name in names), sum(work[name].size for name in names))
    return amount, sum(seconds[name] for name in names)


def _timed(size: dict[str, int], precision: Precision, clock: Clock) -> tuple[Work, dict[str, float], float]:
    """The operators of a reference step, the median seconds of each kind, and of the whole step."""
    step = _reference(**size, precision=precision)
    step()
    whole, parts = [], []
    for _ in range(REPEATS):
        start = clock()
        step()
        whole.append(clock() - start)
        with Operators(clock) as operators:
            step()
        parts.append(operators)
    names = operators.work
    seconds = {name: median(part.seconds[name] for part in parts) for name in names}
    return operators.work, seconds, median(whole)


def _reference(images: int, width: int, side: int, channels: int, precision: Precision) -> Callable[[], None]:
    """A training step of one block of each kind, with AdamW and moving average, on made-up activations."""
    heads = width // 64
    net = nn.ModuleList([AdaLNZeroBlock(width, heads, 4.0), ResidualBlock(channels, channels, width)])
    average = [torch.zeros_like(parameter) for parameter in net.parameters()]
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    tokens = torch.randn(images, side * side, width, requires_grad=True)
    maps = torch.randn(images, channels, 2 * side, 2 * side, requires_grad=True)
    q, k, v = torch.randn(3, images, heads, side * side, 64, requires_grad=True)
    c = torch.randn(images, width, requires_grad=True)

    def step() -> None:
        with autocast(CPU, precision):
            transformed = net[0](tokens, c)
            convolved = net[1](maps.contiguous(memory_format=torch.channels_last), c)
            attended = F.scaled_dot_product_attention(q, k, v)
        torch.autograd.backward(
            [transformed, convolved, attended],
            [torch.ones_like(transformed), torch.ones_like(convolved), torch.ones_like(attended)],
        )
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, list(net.parameters()), 0.5)

    return step
