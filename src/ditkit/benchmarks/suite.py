"""What `ditkit bench` times in turn: training steps and guided evaluations of ditkit and its peers, and products alone.

All run in turn, round by round, so that a busy machine slows all of them; what counts are medians and the median of the
rounds' ratios. All see the same loss (`Transport.losses`) under the same autocast.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import torch

from ditkit.backbones import DiTConfig
from ditkit.benchmarks.latents import CHANNELS, CLASSES, SIDE
from ditkit.benchmarks.peers import Form, forms
from ditkit.benchmarks.products import products
from ditkit.benchmarks.running import Running, Work
from ditkit.costs.count import Cost, count_cost
from ditkit.device import Precision
from ditkit.timing import Contender

STEP, EVALUATION, GEMM = "training step", "guided evaluation", "products alone"
PASSES = {STEP: 3, EVALUATION: 1}
"""Forward passes whose products one of these has: the backward pass has twice as many."""


class Entry(NamedTuple):
    """A task of one form."""

    contender: Contender
    form: Form
    process: Running


class Suite(NamedTuple):
    """What is timed."""

    entries: list[Entry]
    """Training steps first."""
    products: dict[Precision, Contender]
    product_flops: int
    """Operations of a call of each of these."""
    parameters: dict[str, int]
    """How many are trained, by peer."""
    macs: int
    """Multiply-adds of a forward pass of an image, attention's among them. diffusers has a few more, of its further
    embeddings."""
    batch: int

    @property
    def contenders(self) -> list[Contender]:
        return [*(entry.contender for entry in self.entries), *self.products.values()]

    @property
    def baselines(self) -> dict[str, dict[str, Contender]]:
        """Those that the others are compared with, peers that are not compiled, by name and task."""
        found: dict[str, dict[str, Contender]] = {}
        for contender, form, _ in self.entries:
            if not form.ours and not form.compiled:
                found.setdefault(form.name, {})[contender.task] = contender
        return found

    def flops(self, contender: Contender) -> float:
        """Operations per second of a call, counted as the network's products."""
        return 2 * PASSES[contender.task] * self.macs * self.batch / contender.median

    def product_rate(self, precision: Precision) -> float:
        """Operations per second of the products alone."""
        return self.product_flops / self.products[precision].median


@contextmanager
def running_suite(
    backbone: DiTConfig, batch: int, precision: Precision, compiled: bool, peers: tuple[str, ...]
) -> Iterator[Suite]:
    """These peers and ditkit, eager and, with `compiled`, compiled block by block, each in a process of its own, which end with
    this; `precision` is bf16 or fp32.

    The training step is on `batch` latents with DiT's loss; the evaluation is the network on twice
    batch // 2 rows, without gradient. InputError where what a peer needs is not installed.
    """
    chosen = forms(peers, precision, compiled)
    started = [Running(Work(form, backbone, batch, torch.get_num_threads())) for form in chosen]
    try:
        pairs = list(zip(chosen, started, strict=True))
        parameters = {form.peer: process.parameters() for form, process in pairs}  # once it is ready
        steps = [Entry(Contender(STEP, form.name, run.step), form, run) for form, run in pairs]
        evaluations = [
            Entry(Contender(EVALUATION, form.name, run.evaluate), form, run) for form, run in pairs
        ]
        alone, flops = {}, 0
        for each in dict.fromkeys(form.precision for form in chosen):
            found = products(backbone, batch, each)
            alone[each], flops = Contender(GEMM, each, found.run), found.flops
        yield Suite([*steps, *evaluations], alone, flops, parameters, cost_of(backbone).macs, batch)
    finally:
        for process in started:
            process.close()


def cost_of(backbone: DiTConfig) -> Cost:
    net = backbone.build(channels=CHANNELS, classes=CLASSES, out_channels=2 * CHANNELS)
    return count_cost(net, (CHANNELS, SIDE, SIDE), labelled=True)


def speed_against(contender: Contender, baseline: Contender) -> dict[str, float]:
    """How many times as fast as the baseline: the ratio of the medians, and the median of the rounds' ratios."""
    ratios = [theirs / ours for theirs, ours in zip(baseline.times, contender.times, strict=True)]
    return {"ratio": baseline.median / contender.median, "ratio_by_round": median(ratios)}


def forecast_of(form: Form, backbone: DiTConfig, batch: int) -> int | None:
    """Bytes at the worst moment of a step, as `ditkit info` predicts them: of ditkit's own where it is not compiled."""
    if not form.ours or form.compiled:
        return None
    return cost_of(backbone).memory(batch, form.precision).resident
