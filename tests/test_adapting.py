"""Parameters frozen by name, and low-rank additions: what moves, what is kept, what is refused; whole trainings."""

import pytest
import torch
from conftest import CPU, FOUR_STEPS, SMALL
from safetensors.torch import load_file

from ditkit.adapting import adapt, frozen_names
from ditkit.backbones import BACKBONES, UDiTConfig
from ditkit.cli import main
from ditkit.errors import InputError
from ditkit.nn.low_rank import is_addition, merged
from ditkit.pipeline import load
from ditkit.recipes import recipe
from ditkit.training.ema import Ema
from ditkit.training.loop import train

BASE = recipe("digits").replace(**SMALL, train=FOUR_STEPS | {"warmup_images": 0})
LORA = BASE.replace(train={"lora": 4, "lora_alpha": 8.0, "lr": 1e-2, "ema_half_life_images": 8})
BLOCK = ("attention.qkv", "attention.proj", "mlp.0", "mlp.2")
X, T, COND = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 0.5, 0.9]), {"label": torch.tensor([0, 4, 9])}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a trained network."""
    out = tmp_path_factory.mktemp("base") / "run"
    train(BASE.replace(train={"lr": 1e-2, "ema_half_life_images": 8}), out, device=CPU, progress=False)
    return out


def trained(recipe, **fields):
    """The recipe's network with random weights, adapted."""
    chosen = recipe.replace(train=fields)
    net = chosen.build_backbone()
    torch.manual_seed(1)
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.1)
    return adapt(net, chosen.train)


def test_what_a_pattern_names_is_frozen():
    net = trained(BASE, freeze=("blocks.0.*", "*.bias"), unfreeze=("blocks.0.mlp.*",))
    for name, parameter in net.named_parameters():
        frozen = name.startswith("blocks.0.") or name.endswith(".bias")
        assert parameter.requires_grad == (not frozen or name.startswith("blocks.0.mlp.")), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"freeze": ("block.*",)},
            "train.freeze block.* is the name of no parameter; there are patches.proj.weight, ",
        ),
        ({"freeze": ("*",), "unfreeze": ("labels",)}, "train.unfreeze labels is the name of no parameter"),
        ({"freeze": ("*",)}, "freezes every parameter; leave some out of it"),
        (
            {"lora": 4, "lora_on": ("atention",)},
            "train.lora_on atention: no linear layer .* there are attention, linear, mlp, ",
        ),
        ({"lora": 25}, "train.lora 25 is more than the narrowest of these layers, 24"),
    ],
)
def test_names_of_nothing_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        trained(BASE, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora": 4, "freeze": ("label.*",)}, "freezes all that it does not add; leave train.freeze out"),
        ({"unfreeze": ("label.*",)}, "train.unfreeze label.*, but nothing is frozen"),
        ({"lora_alpha": 8.0}, "train.lora_alpha 8 is for train.lora; give a rank"),
    ],
)
def test_fields_that_do_nothing_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        BASE.replace(train=fields)


def test_additions_begin_as_the_network_and_are_drawn_by_name():
    """Bit for bit; and another network has the same first values under the same names."""
    expected = trained(BASE)(X, T, COND)
    net = trained(BASE, lora=4)
    assert torch.equal(net(X, T, COND), expected)
    added = {name: p for name, p in net.named_parameters() if is_addition(name)}
    assert {name.rpartition(".")[0] for name in added} == {
        f"blocks.{k}.{part}" for k in (0, 1) for part in BLOCK
    }
    assert frozen_names(net) == [name for name, _ in net.named_parameters() if name not in added]
    other = dict(trained(BASE.replace(backbone={"depth": 1}), lora=4, lora_on=("mlp",)).named_parameters())
    for name in ("blocks.0.mlp.0.lora_down", "blocks.0.mlp.0.lora_up"):
        assert torch.equal(added[name], other[name])
    down = added["blocks.0.attention.qkv.lora_down"]
    assert 0.9 * 24**-0.5 < down.abs().max() <= 24**-0.5
    assert not torch.equal(down[:2], added["blocks.1.attention.qkv.lora_down"][:2])


def test_merged_is_the_same_function():
    net = trained(BASE, lora=4, lora_alpha=2.0)
    for name, parameter in net.named_parameters():
        if is_addition(name):
            parameter.data.normal_(0, 0.2)
    plain = trained(BASE)
    plain.load_state_dict(merged(net.state_dict(), 0.5))
    expected = net(X, T, COND)
    assert not torch.allclose(expected, trained(BASE)(X, T, COND), rtol=1e-2)
    torch.testing.assert_close(
        plain(X, T, COND), expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item()
    )


def test_a_fused_network_has_the_additions():
    """A U-DiT's layers are multiplied with each other for sampling."""
    config = UDiTConfig(width=16, heads=1, depth=(1, 1, 1, 1, 1))
    net = trained(BASE.with_backbone(config), lora=4, lora_on=("mlp",))
    for name, parameter in net.named_parameters():
        if is_addition(name):
            parameter.data.normal_(0, 0.2)
    expected = net(X, T, COND)
    torch.testing.assert_close(
        net.fused()(X, T, COND), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()
    )


def test_the_average_shares_what_is_frozen():
    net = trained(BASE, lora=4, unfreeze=("label.*",))
    average = Ema(net, half_life=8, rampup=None)
    for name, parameter in net.named_parameters():
        assert (average.net.get_parameter(name) is parameter) == (name in frozen_names(net)), name
        parameter.data += parameter.requires_grad
    average.update(8, 8, torch.tensor(True))
    label = net.get_parameter("label.weight")
    torch.testing.assert_close(average.net.get_parameter("label.weight"), label - 0.5)


def run_files(folder):
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return {part: load_file(newest / f"{part}.safetensors") for part in ("model", "ema", "optimizer")}


def test_a_run_moves_its_additions_only_resumes_and_is_read_as_a_plain_network(base, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(LORA, whole, device=CPU, init=base, progress=False)
    train(LORA.replace(train={"images": 16}), parts, device=CPU, init=base, progress=False)
    train(LORA, parts, device=CPU, progress=False)
    ours, theirs = run_files(whole), run_files(parts)
    for part, tensors in ours.items():
        assert tensors.keys() == theirs[part].keys()
        for name, value in tensors.items():
            assert torch.equal(value, theirs[part][name]), name
    before = run_files(base)["ema"]
    assert all(torch.equal(ours["ema"][name], value) for name, value in before.items())
    assert all(is_addition(name) for name in ours["model"]), "the base is in one file"
    assert {name.split("/")[0] for name in ours["optimizer"]} == set(ours["model"])
    assert any((value != 0).any() for name, value in ours["model"].items() if name.endswith("lora_up"))

    pipe = load(whole, CPU)
    state = pipe.backbone.state_dict()
    assert state.keys() == before.keys()
    for name, value in state.items():
        assert torch.equal(value, before[name]) != (
            name[:6] == "blocks" and name.removesuffix(".weight").endswith(BLOCK)
        ), name
    pipe.save(tmp_path / "snapshot")
    images = pipe.generate({"label": [3]}, seeds=[0])
    assert torch.equal(load(tmp_path / "snapshot", CPU).generate({"label": [3]}, seeds=[0]), images)
    assert not torch.equal(load(base, CPU).generate({"label": [3]}, seeds=[0]), images)


def test_a_run_of_additions_begins_with_a_trained_network(tmp_path):
    with pytest.raises(InputError, match=r"train.lora 4 is for a trained network: give `init`"):
        train(LORA, tmp_path / "run", device=CPU, progress=False)
    assert not (tmp_path / "run").exists()


def test_nothing_is_frozen_that_starts_fresh(base, tmp_path):
    """A layer of another shape would never be trained."""
    other = LORA.replace(backbone={"patch": 4})
    with pytest.raises(
        InputError, match=r"patches.proj.weight, .* did not fit, would start fresh and never be trained"
    ):
        train(other, tmp_path / "run", device=CPU, init=base, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_frozen_run_resumes(tmp_path):
    chosen = BASE.replace(train={"freeze": ("blocks.0.*", "label.*"), "weight_decay": 0.1, "clip": 0.5})
    train(chosen, tmp_path / "whole", device=CPU, progress=False)
    train(chosen.replace(train={"images": 16}), tmp_path / "parts", device=CPU, progress=False)
    train(chosen, tmp_path / "parts", device=CPU, progress=False)
    ours, theirs = run_files(tmp_path / "whole"), run_files(tmp_path / "parts")
    assert all(torch.equal(value, theirs[part][name]) for part in ours for name, value in ours[part].items())
    first = chosen.build_backbone().state_dict()
    for name, value in ours["ema"].items():
        frozen = name.startswith(("blocks.0.", "label."))
        assert (name in ours["model"]) == (not frozen)
        assert torch.equal(value, first[name]) or not frozen, name


def test_info_says_what_is_trained(capsys):
    assert main(["info", "digits", "--train.lora", "4", "--train.unfreeze", "label.*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    net = adapt(
        recipe("digits").build_backbone(),
        recipe("digits").replace(train={"lora": 4, "unfreeze": ("label.*",)}).train,
    )
    count = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert (
        f"  trained     {count:,} parameters; {sum(map(torch.numel, net.parameters())) - count:,} are frozen"
        in lines
    )


def test_levels_alone_have_their_own_names():
    """What is frozen by name in the whole is not in its lower levels."""
    whole = recipe("digits").with_backbone(
        BACKBONES["Matryoshka"].model_copy(
            update={"inner": BASE.backbone, "levels": BACKBONES["Matryoshka"].levels[-1:]}
        )
    )
    chosen = whole.replace(train={"freeze": ("inner.*",)})
    assert chosen.lowest(1).train.freeze == ()
    with pytest.raises(
        InputError, match=r"train.freeze and train.stages: earlier stages have other networks"
    ):
        chosen.replace(train={"stages": (8,)})
