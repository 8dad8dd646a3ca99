"""Plans: bytes that a step really keeps, formulas by hand, every recipe of a paper on 8, 64 and 1,024 GPUs."""

import json
import math
from functools import lru_cache

import pytest
import torch
from torch import nn

from ditkit.cli import main
from ditkit.costs.footprint import Footprint, Line, Live, Pass
from ditkit.costs.gpus import GIB, GPUS, gpu
from ditkit.costs.plan import (
    bytes_moved,
    checkpoints,
    choose,
    memory_of,
    most_images,
    seconds_to_move,
    shard_of,
)
from ditkit.errors import InputError
from ditkit.objectives.terms import build_terms
from ditkit.recipes import RECIPES
from ditkit.training.ema import Ema
from ditkit.training.footprint import (
    Training,
    planned_batch,
    planned_codec,
    planned_reader,
    recomputing,
)
from ditkit.training.planning import HOUR, Counted, Options, for_gpu, share, stages_of
from ditkit.training.step import backward, make_optimizer, update

CPU = torch.device("cpu")
KEPT = Footprint(weights=100, auxiliary=0, gradients=100, optimizer=200, averages=100, units=(40, 40, 20))
STEP = Pass(
    joint=(Line(10, 60), Line(110, 5)), others=(Line(10, 50), Line(40, 5)), products=Line(0, 1_000)
)


def small(name, **sections):
    recipe = RECIPES[name]()
    return recipe.replace(**sections)


SIZES = {
    "dit": small("digits", backbone={"width": 120, "depth": 5, "heads": 5}, train={"precision": "fp32"}),
    "dit-bf16": small("digits", backbone={"width": 112, "depth": 3, "heads": 4}, train={"precision": "bf16"}),
    "terms": small(
        "digits",
        backbone={"width": 72, "depth": 6, "heads": 3},
        train={"terms": ("sra",), "precision": "fp32", "routing": "tread:first=1,last=3"},
    ),
    "clips": small(
        "moving-digits", backbone={"width": 72, "depth": 4, "heads": 2}, train={"precision": "fp32"}
    ),
    "levels": small("emoji-matryoshka", train={"precision": "fp32"}),
}


def measured(recipe, images, form, every, passes):
    """The most bytes of tensors in a real step of so many passes, with optimiser and average, after a first step."""
    from ditkit.kernels.attention import attention_as

    recipe = recipe.replace(train={"micro_batch": images if passes > 1 else None})
    net = recipe.build_backbone().train()
    average = Ema(net, 1000, None)
    terms = build_terms(recipe.train.terms, net, 0)
    averages = [average, *(average.of(term) for term in terms.values())]
    optimizer = make_optimizer(net, recipe.train, *terms.values())
    codec = planned_codec(recipe)
    batch = planned_batch(recipe, codec, images * passes)
    net.register_forward_pre_hook(recomputing(every), with_kwargs=True)

    def step():
        backward(recipe, net, codec, batch, CPU, planned_reader(recipe), terms, average.net)
        norm = update(optimizer, None)
        for one in averages:
            one.update(images, 100, norm.isfinite())

    with attention_as(form):
        step()
        live = Live(1)
        live.follow(batch.draws.values())
        for module in (net, *terms.values(), *(one.net for one in averages)):
            live.follow([*module.parameters(), *module.buffers()])
        live.follow(v for state in optimizer.state.values() for v in state.values())
        with live:
            step()
    return max(moment.gradients + moment.others.at(1) for moment in live.moments)


@pytest.mark.parametrize(
    ("name", "form", "every", "passes"),
    [
        ("dit", "fused", 0, 1),
        ("dit", "written", 0, 2),
        ("dit", "fused", 2, 1),
        ("dit-bf16", "fused", 0, 1),
        ("dit-bf16", "written", 1, 2),
        ("terms", "fused", 0, 2),
        ("clips", "fused", 1, 1),
        ("levels", "fused", 0, 1),
    ],
)
def test_bytes_of_a_real_step(name, form, every, passes):
    """Predicted without numbers, from two and three images, for five; within 5 %."""
    recipe = SIZES[name]
    training = Training(recipe)
    predicted = memory_of(training.footprint(), training.passes(form, every), 5, passes=passes).total
    assert predicted == pytest.approx(measured(recipe, 5, form, every, passes), rel=0.05)
