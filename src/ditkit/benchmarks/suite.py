"""What `ditkit bench` times in turn: training steps and guided evaluations of ditkit and its peers, and products alone.

All run round by round in one process, so that a busy machine slows all of them; what counts are medians and the median of the
rounds' ratios. All see the same loss (`Transport.losses`) under the same autocast.
"""

import copy
from functools import partial
from statistics import median
from typing import NamedTuple

from ditkit.backbones import DiTConfig
from ditkit.benchmarks.latents import CHANNELS, CLASSES, SIDE, TINY
from ditkit.benchmarks.memory import measure_step
from ditkit.benchmarks.peers import Form, forms
from ditkit.benchmarks.products import products
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
        for contender, form in self.entries:
            if form.peer != "ditkit" and not form.compiled:
                found.setdefault(form.name, {})[contender.task] = contender
        return found

    def flops(self, contender: Contender) -> float:
        """Operations per second of a call, counted as the network's products."""
        return 2 * PASSES[contender.task] * self.macs * self.batch / contender.median

    def product_rate(self, precision: Precision) -> float:
        """Operations per second of the products alone."""
        return self.product_flops / self.products[precision].median


def build_suite(
    backbone: DiTConfig, batch: int, precision: Precision, compiled: bool, peers: tuple[str, ...]
) -> Suite:
    """These peers and ditkit, eager and, with `compiled`, compiled block by block; `precision` is bf16 or fp32.

    The training step is on `batch` latents with DiT's loss; the evaluation is the network on twice
    batch // 2 rows, without gradient. InputError where what a peer needs is not installed.
    """
    steps, evaluations, parameters = [], [], {}
    for form in forms(peers, precision, compiled):
        recipe = form.recipe(backbone, batch)
        trained = form.build(recipe)
        frozen = copy.deepcopy(trained)
        parameters[form.peer] = sum(p.numel() for p in trained.parameters() if p.requires_grad)
        steps.append(Entry(Contender(STEP, form.name, form.step(recipe, trained)), form))
        evaluations.append(Entry(Contender(EVALUATION, form.name, form.evaluation(recipe, frozen)), form))
    alone, flops = {}, 0
    for each in dict.fromkeys(form.precision for _, form in steps):
        found = products(backbone, batch, each)
        alone[each], flops = Contender(GEMM, each, found.run), found.flops
    return Suite([*steps, *evaluations], alone, flops, parameters, cost_of(backbone).macs, batch)


def cost_of(backbone: DiTConfig) -> Cost:
    net = backbone.build(channels=CHANNELS, classes=CLASSES, out_channels=2 * CHANNELS)
    return count_cost(net, (CHANNELS, SIDE, SIDE), labelled=True)


def speed_against(contender: Contender, baseline: Contender) -> dict[str, float]:
    """How many times as fast as the baseline: the ratio of the medians, and the median of the rounds' ratios."""
    ratios = [theirs / ours for theirs, ours in zip(baseline.times, contender.times, strict=True)]
    return {"ratio": baseline.median / contender.median, "ratio_by_round": median(ratios)}


def memory_of_step(form: Form, backbone: DiTConfig, batch: int, threads: int) -> int:
    """Bytes at the worst moment of a training step of that form, in a process of its own, beside the libraries' code."""
    small = partial(form.built_step, TINY, 2)
    return measure_step(partial(form.built_step, backbone, batch), 1, small, threads).memory


def forecast_of(form: Form, backbone: DiTConfig, batch: int) -> int | None:
    """The same as `ditkit info` predicts it, of ditkit's own step where it is not compiled."""
    if form.peer != "ditkit" or form.compiled:
        return None
    return cost_of(backbone).memory(batch, form.precision).resident
