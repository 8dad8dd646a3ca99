"""Sampling in bf16: weights that are rounded once give what autocast gives, which rounds them at every evaluation."""

from itertools import product

import pytest
import torch
from combinations import AXES, PLAIN, recipe_of, refused
from conftest import CPU

from ditkit.backbones import with_bf16_weights
from ditkit.device import autocast
from ditkit.pipeline import Pipeline, load


def recipe_with(backbone):
    """A recipe of that network, of the first data and text that it takes."""
    rows = (
        PLAIN | {"backbone": backbone, "data": data, "text": text, "batching": "plain"}
        for data, text in product(AXES["data"], AXES["text"])
    )
    return next(recipe_of(row) for row in rows if not refused(row))


def randomised(recipe):
    net = recipe.build_backbone().eval().requires_grad_(False)
    stream = torch.Generator().manual_seed(0)
    for value in net.parameters():
        value += 0.1 * torch.randn(value.shape, generator=stream)
    return net


def state_of(recipe, rows=3):
    stream = torch.Generator().manual_seed(1)
    shape = recipe.build_codec(CPU).layout(*recipe.data.shape).shape
    x = torch.randn(rows, *shape, generator=stream)
    cond = {"label": torch.arange(rows) % max(recipe.data.classes or 1, 1)}
    if recipe.text is not None:
        cond["text"] = torch.randn(rows, 5, 8, generator=stream)
        cond["text_pooled"] = torch.randn(rows, 8, generator=stream)
        cond["text_mask"] = torch.ones(rows, 5, dtype=torch.bool)
    return x, torch.linspace(0.1, 0.9, rows), cond


@pytest.mark.parametrize("backbone", AXES["backbone"])
def test_weights_rounded_once_give_the_same_bits(backbone):
    recipe = recipe_with(backbone)
    net = randomised(recipe).fused()
    x, t, cond = state_of(recipe)
    lower = with_bf16_weights(net)
    with autocast(CPU, "bf16"):
        assert torch.equal(lower(x, t, cond), net(x, t, cond))
    assert any(value.dtype == torch.bfloat16 for value in lower.parameters())
    assert all(value.dtype == torch.float32 for value in net.parameters())


def test_a_pipeline_keeps_a_network_for_each_precision():
    pipe = load("digits", "cpu")
    assert pipe.network_in("fp32") is pipe.network is pipe.backbone
    lower = pipe.network_in("bf16")
    assert lower is pipe.network_in("bf16") is not pipe.network
    next(pipe.backbone.parameters()).data.mul_(1.0)  # changed as far as can be seen
    next(pipe.backbone.parameters()).add_(0)
    assert lower is not pipe.network_in("bf16")


def test_compiling_is_of_the_network_of_either_precision(monkeypatch):
    pipe, compiled = load("digits", "cpu"), []
    monkeypatch.setattr("ditkit.backbones.compiling.check_compiler", lambda device, instead: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *args, **kwargs: compiled.append(self))
    pipe.compile("on")
    for precision in ("fp32", "bf16"):
        assert pipe.network_in(precision).blocks[0] in compiled


def test_samples_in_bf16_are_those_of_autocast():
    pipe = load("digits", "cpu")
    how = {"cond": {"label": [3, 7]}, "seeds": [0, 1], "steps": 3}
    made = pipe.generate(**how, precision="bf16")
    plain = Pipeline(pipe.recipe, pipe.backbone, pipe.codec, CPU)
    plain.network_in = lambda precision: plain.backbone
    assert torch.equal(made, plain.generate(**how, precision="bf16"))
