"""Optimisers by name: what they keep, that runs with them resume bit for bit, and what is refused."""

import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU, FOUR_STEPS, SMALL
from safetensors.torch import load_file
from torch import nn

import ditkit
from ditkit.checkpoint import Saved, checked_state, optimizer_tensors, save_checkpoint
from ditkit.errors import InputError
from ditkit.optimizers import OPTIMIZERS
from ditkit.optimizers.parameters import trained
from ditkit.optimizers.size import state_bytes
from ditkit.recipe import TrainConfig
from ditkit.recipes import recipe
from ditkit.training.loop import train
from ditkit.training.parallel import kind_of
from ditkit.training.step import make_optimizer, update

BASE = recipe("digits").replace(**SMALL, train=FOUR_STEPS)


@pytest.fixture
def eager(monkeypatch):
    """Without compiling, which takes seconds for each shape."""
    monkeypatch.setattr("ditkit.optimizers.eight_bit.check_compiler", lambda *_: None)
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(params=list(OPTIMIZERS))
def choice(request, eager):
    if request.param == "adamw_8bit":
        pytest.importorskip("torchao", reason="torchao is not installed")
    return request.param


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 2, bias=False), nn.Linear(3, 3))
    net.repeated = [net[0]]  # as of a network with blocks
    return net


def stepped(net, optimizer, steps):
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        net[:2](x).square().mean().backward()
        update(optimizer, 1.0)


def test_it_learns_and_its_state_is_restored_bit_for_bit(choice, tmp_path):
    """Of parameters without a gradient too, which have no state."""
    config = TrainConfig(optimizer=choice, lr=1e-2, weight_decay=0.1)
    net, again = network(), network()
    optimizer, other = make_optimizer(net, config), make_optimizer(again, config)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    stepped(net, optimizer, 2)
    again.load_state_dict(net.state_dict())
    tensors = optimizer_tensors(optimizer, dict(net.named_parameters()))
    assert all(type(value) is torch.Tensor for value in tensors.values())
    assert not any(name.startswith("2.") for name in tensors)
    path = save_checkpoint(tmp_path, 1, {"optimizer": tensors}, {}, keep=1)
    Saved(path, checked_state(path, ("optimizer",))).fill_optimizer(other, dict(again.named_parameters()))
    stepped(net, optimizer, 2)
    stepped(again, other, 2)
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        assert torch.equal(value, before[name]) == name.startswith("2."), name


def test_a_step_that_is_not_finite_is_left_out(choice):
    net = network()
    optimizer = make_optimizer(net, TrainConfig(optimizer=choice))
    stepped(net, optimizer, 1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    (net[:2](torch.ones(1, 64)).sum() * float("nan")).backward()
    update(optimizer, None)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_a_run_resumes_bit_for_bit(name, tmp_path):
    chosen = BASE.replace(train={"optimizer": name})
    whole = train(chosen, tmp_path / "whole", device=CPU, progress=False)
    train(chosen.replace(train={"images": 16}), tmp_path / "parts", device=CPU, progress=False)
    parts = train(chosen, tmp_path / "parts", device=CPU, progress=False)
    for part in ("model", "optimizer"):
        ours, theirs = load_file(whole / f"{part}.safetensors"), load_file(parts / f"{part}.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_what_they_keep(choice):
    """Of 8 bits a code for each weight, a scale for each 256 and a table; of tensors below 4,096 weights all."""
    net = network()
    large, others = 64 * 96, 96 + 2 * 96 + 9 + 3
    expected = {
        "adamw": 8 * (large + others) + 5 * 4,
        "muon": 4 * large + 8 * others + 4 * 4,
        "adafactor": 4 * (64 + 96 + 96 + 96 + 2 + 3 + 3 + 3) + 5 * 4,
        "adamw_8bit": 2 * (large + 4 * large // 256 + 4 * 256) + 8 * others + 5 * 4,
    }
    assert state_bytes(trained(net), TrainConfig(optimizer=choice)) == expected[choice]


def test_without_torchao_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(InputError, match=r"adamw_8bit needs a package: pip install 'ditkit\[optim8\]'"):
        make_optimizer(network(), TrainConfig(optimizer="adamw_8bit"))


def test_one_of_ones_own():
    def sgd(parameters, config, *, momentum: float = 0.5):
        return torch.optim.SGD(parameters, lr=config.lr, momentum=momentum)

    ditkit.register("optimizer", "of_ones_own", sgd)
    try:
        found = make_optimizer(network(), TrainConfig(optimizer="of_ones_own:momentum=0.9", lr=0.1))
    finally:
        del OPTIMIZERS["of_ones_own"]
    assert (found.defaults["momentum"], found.defaults["lr"]) == (0.9, 0.1)
    with pytest.raises(InputError, match="unknown 'adam'; did you mean adamw"):
        BASE.replace(train={"optimizer": "adam"})


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_shards_are_of_adamw_only(name):
    config = TrainConfig(optimizer=name, parallel="fsdp")
    two = SimpleNamespace(several=True, world=2)
    with pytest.raises(
        InputError, match=rf"`train.parallel` fsdp keeps shards of what adamw keeps; .* {name} give"
    ):
        kind_of(config, BASE.build_backbone(), two, CPU)


def test_muon_is_for_the_matrices_of_the_blocks():
    """Not for modulations, patches, labels, the time, the last layer and vectors, which are AdamW's; both at one rate."""
    net = BASE.build_backbone()
    optimizer = make_optimizer(net, TrainConfig(optimizer="muon:momentum=0.9", lr=0.1, weight_decay=0.01))
    first, second = optimizer.param_groups
    named = {id(value): name for name, value in net.named_parameters()}
    expected = {
        f"blocks.{k}.{layer}.weight"
        for k in range(len(net.blocks))
        for layer in ("attention.qkv", "attention.proj", "mlp.0", "mlp.2")
    }
    assert {named[id(value)] for value in first["params"]} == expected
    assert {named[id(value)] for value in second["params"]} == {*named.values()} - expected
    assert (first["momentum"], first["lr"], second["lr"]) == (0.9, 0.1, 0.1)
    assert first["weight_decay"] == second["weight_decay"] == 0.01


def test_a_step_of_muon_by_hand():
    """Of a matrix: the momentum's singular vectors with values near 1, at 0.2 root of the longer side; of others AdamW's first
    step, the sign. The rate is that of the groups."""
    net = network()
    optimizer = make_optimizer(net, TrainConfig(optimizer="muon", lr=1.0))
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for value in net.parameters():
        value.grad = torch.randn_like(value)
    optimizer.step()
    left, _, right = torch.linalg.svd(net[0].weight.grad, full_matrices=False)
    moved = before["0.weight"] - net[0].weight.detach()
    values = (left.T @ (moved / (0.01 * 0.2 * 96**0.5)) @ right.T).diagonal()
    assert (values - 1).abs().max() < 0.5  # five iterations in bf16 end between 0.7 and 1.2 or so
    assert moved.square().mean().sqrt().item() == pytest.approx(0.01 * 0.2, rel=0.2)
    sign = before["1.weight"] - 0.01 * net[1].weight.grad.sign()
    torch.testing.assert_close(net[1].weight.detach(), sign, rtol=1e-4, atol=1e-5)


def test_muon_needs_blocks():
    plain = nn.Linear(3, 3)
    with pytest.raises(InputError, match="muon is for the blocks of a diffusion transformer; give adamw"):
        make_optimizer(plain, TrainConfig(optimizer="muon"))
    with pytest.raises(InputError, match=r"which train.lora 2 freezes; give adamw"):
        BASE.replace(train={"optimizer": "muon", "lora": 2})
