"""Blocks computed again in the backward pass: the same gradients, less that is kept, whatever else is around the blocks."""

import pytest
import torch
from conftest import CPU, FOUR_STEPS
from safetensors.torch import load_file

from ditkit.backbones import BACKBONES
from ditkit.costs import recipe_cost
from ditkit.costs.operators import Keeping
from ditkit.data import Batch
from ditkit.errors import InputError
from ditkit.nn.around import checkpointing
from ditkit.objectives.terms import build_terms
from ditkit.recipes import recipe
from ditkit.training.draws import with_draws
from ditkit.training.loop import train
from ditkit.training.step import backward

DIGITS = recipe("digits").replace(
    backbone={"width": 24, "depth": 4, "heads": 2, "patch": 2}, train=FOUR_STEPS
)
PYRAMID = recipe("digits").with_backbone(
    BACKBONES["Matryoshka"].model_copy(
        update={"inner": DIGITS.backbone, "levels": BACKBONES["Matryoshka"].levels[-1:]}
    )
)
CASES = {
    "plain": DIGITS,
    "micro-batches": DIGITS.replace(train={"micro_batch": 3}),
    "routing": DIGITS.replace(train={"routing": "tread:rate=0.5,first=1,last=2"}),
    "terms": DIGITS.replace(train={"terms": ("layer_sync:early=1,late=2", "sra:student=1,teacher=2")}),
    "levels": PYRAMID.replace(train={**FOUR_STEPS, "level_share": (0.5,)}),
    "bf16": DIGITS.replace(train={"precision": "bf16"}),
}


def gradients(chosen, images):
    """Of a batch, with the bytes that autograd kept for them."""
    net, codec = chosen.build_backbone(), chosen.build_codec()
    keeping = Keeping(net.parameters())
    torch.manual_seed(1)
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.1)
    terms = build_terms(chosen.train.terms, net, 0)
    batch = with_draws(chosen, codec, Batch(images, torch.arange(len(images)), torch.arange(len(images))))
    with keeping:
        backward(chosen, net, codec, batch, CPU, terms=terms, average=net)
    return {name: p.grad for name, p in net.named_parameters()}, keeping.bytes


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_same_and_less_is_kept(name):
    chosen = CASES[name]
    images = torch.randint(0, 256, (6, 1, *chosen.data.shape), dtype=torch.uint8)
    expected, kept = gradients(chosen, images)
    some, fewer = gradients(chosen.replace(train={"checkpoint_blocks": 2}), images)
    found, fewest = gradients(chosen.replace(train={"checkpoint_blocks": 1}), images)
    assert fewest < fewer < kept
    assert fewest < kept / 2
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-6, atol=1e-8, msg=parameter)
        torch.testing.assert_close(some[parameter], gradient, rtol=1e-6, atol=1e-8, msg=parameter)


def test_packed_rows_are_computed_again():
    packed = recipe("anysize-fashion").replace(
        backbone={"width": 24, "depth": 2, "heads": 2, "patch": 4}, train={"packed": True}
    )
    net = packed.build_backbone()
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.1)
    states, t = [torch.randn(1, 8, 8), torch.randn(1, 4, 8)], torch.tensor([0.2, 0.7])
    found = []
    for around in (None, checkpointing(1)):
        net.zero_grad()
        outs = net.packed(states, t, {"label": torch.tensor([0, 1])}, around=around)
        sum(out.square().sum() for out in outs).backward()
        found.append([p.grad for p in net.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_it_may_change_when_a_run_is_resumed(tmp_path):
    """And a run that changed it ends with the same weights."""
    whole = train(DIGITS, tmp_path / "whole", device=CPU, progress=False)
    train(DIGITS.replace(train={"images": 16}), tmp_path / "parts", device=CPU, progress=False)
    again = DIGITS.replace(train={"checkpoint_blocks": 1})
    resumed = train(again, tmp_path / "parts", device=CPU, progress=False)
    expected = load_file(whole / "model.safetensors")
    for name, value in load_file(resumed / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_forward_mode_is_refused():
    with pytest.raises(InputError, match="mean_flow differentiates the network in forward mode"):
        DIGITS.replace(transport={"method": "mean_flow"}, train={"checkpoint_blocks": 1})


def test_memory_is_counted():
    """What is kept between blocks, and what the largest keeps while it is computed again."""
    net, x = DIGITS.build_backbone(), torch.randn(4, 1, 8, 8)
    kept = []
    for every in (0, 1):
        keeping = Keeping(net.parameters())
        with keeping:
            net(x, torch.rand(4), {"label": torch.arange(4)}, around=checkpointing(every) if every else None)
        kept.append(keeping.bytes)
    cost = recipe_cost(DIGITS)
    plain, again = (
        cost.memory(
            4, "fp32", training=DIGITS.train.model_copy(update={"checkpoint_blocks": every})
        ).activations
        for every in (0, 1)
    )
    assert plain == pytest.approx(kept[0], rel=0.05)
    assert again == pytest.approx(kept[1] + (kept[0] - kept[1]) / 4, rel=0.1)
