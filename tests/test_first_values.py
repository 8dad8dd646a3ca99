"""The first value of a parameter is a function of the seed and its name: laws, shares, neighbours, sizes."""

import pytest
import torch
from test_backbones import shallow
from torch import nn

from ditkit.backbones import BACKBONES, backbone
from ditkit.errors import InputError
from ditkit.first_values import Recorder, build
from ditkit.recipes import recipe


class Parts(nn.Module):
    """Filled in as many ways as constructors do."""

    def __init__(self, first: int = 0):
        super().__init__()
        self.extra = nn.ModuleList(nn.Linear(4, 4) for _ in range(first))
        self.linear = nn.Linear(200, 300)
        self.normal = nn.Parameter(torch.empty(300, 200).normal_(1.0, 0.5))
        self.truncated = nn.Parameter(nn.init.trunc_normal_(torch.empty(300, 200), std=0.02))
        self.halves = nn.Parameter(torch.empty(2, 3000))
        nn.init.zeros_(self.halves)
        with torch.no_grad():
            self.halves[1].uniform_(2.0, 3.0)
        self.table = nn.Parameter(torch.arange(5.0))
        self.copied = nn.Parameter(torch.empty(3))
        with torch.no_grad():
            self.copied.copy_(torch.tensor([1.0, 2.0, 3.0]))
        self.scale = nn.Parameter(torch.full((300,), 0.1))
        self.token = nn.Parameter(torch.randn(3000))
        self.drawn = nn.Parameter(torch.randn(7) / 50)


def test_laws_are_the_constructors():
    net = build(Parts, 0, "it").requires_grad_(False)
    bound = 200**-0.5
    assert net.linear.weight.abs().max() <= bound
    assert net.linear.weight.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert net.linear.bias.abs().max() <= bound
    assert net.normal.mean() == pytest.approx(1.0, abs=0.01)
    assert net.normal.std() == pytest.approx(0.5, rel=0.01)
    assert net.truncated.std() == pytest.approx(0.02, rel=0.02)
    assert (net.halves[0] == 0).all()
    assert net.halves[1].min() >= 2
    assert net.halves[1].mean() == pytest.approx(2.5, abs=0.02)
    assert (net.scale == torch.tensor(0.1)).all()
    assert net.token.std() == pytest.approx(1, rel=0.05)
    assert net.table.tolist() == [0, 1, 2, 3, 4]
    assert net.copied.tolist() == [1, 2, 3]


def test_values_do_not_depend_on_what_else_there_is():
    alone, beside = build(Parts, 3, "it"), build(lambda: Parts(first=2), 3, "it")
    for name in ("linear.weight", "linear.bias", "normal", "truncated", "halves", "scale", "token"):
        assert torch.equal(alone.get_parameter(name), beside.get_parameter(name)), name
    assert not torch.equal(beside.extra[0].weight, beside.extra[1].weight)
    assert not torch.equal(alone.linear.weight, build(Parts, 4, "it").linear.weight)
    assert not torch.equal(alone.linear.weight, build(Parts, 3, "it", "inner.").linear.weight)


def test_what_is_not_filled_by_numbers_is_seeded_too():
    torch.manual_seed(1)
    first = build(Parts, 3, "it")
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first.drawn, build(Parts, 3, "it").drawn)
    torch.manual_seed(1)
    build(Parts, 3, "it")
    assert torch.equal(state, torch.get_rng_state())  # the caller's generator is left alone


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_of_every_backbone_has_such_values(name):
    """Also where only the shapes are made: a process that has a piece of a network needs no other."""
    with torch.device("meta"), Recorder() as recorder:
        net = backbone(name, classes=10, channels=3, **shallow(name))
    assert not [name for name, value in net.named_parameters() if recorder.writes(value) is None]


@pytest.mark.parametrize("name", ["emoji-t2i", "mdm-cc12m-64"])
def test_of_a_network_with_a_text_too(name):
    with torch.device("meta"), Recorder() as recorder:
        net = recipe(name).build_backbone()
    assert not [name for name, value in net.named_parameters() if recorder.writes(value) is None]


def test_a_deeper_network_begins_with_the_same_blocks():
    shallow, deep = (
        recipe("digits").replace(backbone={"depth": depth}).build_backbone().state_dict() for depth in (1, 2)
    )
    assert all(torch.equal(value, deep[name]) for name, value in shallow.items())
    assert not torch.equal(deep["blocks.0.mlp.0.weight"], deep["blocks.1.mlp.0.weight"])


def test_what_is_gone_before_the_end_is_taken_for_no_parameter():
    """A storage can get the place of one that was let go."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            for _ in range(100):
                torch.zeros(5)
            self.tables = nn.ParameterList(torch.arange(5.0) for _ in range(100))

    for table in build(Table, 0, "it").tables:
        assert table.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("width", [2**40, 2**70])
def test_weights_that_no_machine_can_address_are_refused(width):
    with pytest.raises(InputError, match=r"more than any machine can address; choose a smaller width"):
        build(lambda: nn.Linear(width, width), 0, "width")


def test_weights_that_this_machine_has_no_room_for_are_refused():
    with pytest.raises(InputError, match=r"the weights of this network take .* GB"):
        build(lambda: nn.Linear(2**23, 2**23), 0, "width")
