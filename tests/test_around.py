"""What is put around blocks: every network calls it for every block; tokens that are left out are as if masked."""

import pytest
import torch

from ditkit.backbones import BACKBONES, backbone
from ditkit.errors import InputError
from ditkit.nn.around import composed, put_back, taken

SMALL = {
    "DiT-S/2": {"width": 48, "depth": 4, "heads": 4},
    "SiT-S/2": {"width": 48, "depth": 4, "heads": 4},
    "U-DiT-S": {"width": 16, "depth": (1, 1, 1, 1, 1), "heads": 2},
    "UNet": {"width": 32},
    "MDM-64": {
        "widths": (32, 64),
        "depth": (1, 1),
        "attention": (0, 1),
        "condition_width": 64,
        "text_width": 32,
    },
    "Matryoshka": {"inner": {"kind": "DiT", "width": 48, "depth": 2, "heads": 4}},
}


def made(name: str, **fields):
    torch.manual_seed(0)
    net = backbone(name, channels=3, classes=3, **SMALL[name] | fields)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.2)
    return net.eval()


@pytest.mark.parametrize("name", SMALL)
def test_is_called_for_every_block(name):
    net = made(name)
    channels = 3 if name != "Matryoshka" else net.inner.patches.proj.in_channels * 5
    x, t, cond = torch.randn(2, channels, 8, 8), torch.tensor([0.2, 0.9]), {"label": torch.tensor([0, 2])}
    seen = []

    def around(k, run, h, at):
        seen.append(k)
        return run(h, at)

    assert torch.equal(net(x, t, cond, around=around), net(x, t, cond))
    assert sorted(seen) == list(range(len(net.blocks)))


def test_every_kind_is_tried():
    assert {config.kind for config in BACKBONES.values()} == {BACKBONES[name].kind for name in SMALL}


@pytest.mark.parametrize("name", [name for name in SMALL if not BACKBONES[name].uniform])
def test_others_than_a_dit_need_all_tokens(name):
    net = made(name)
    x = torch.randn(2, 15 if name == "Matryoshka" else 3, 8, 8)

    def around(k, run, h, at):
        return run(h, at.take(torch.zeros(2, 1, dtype=torch.int64)))

    with pytest.raises(InputError, match="only a DiT"):
        net(x, torch.rand(2), {"label": torch.tensor([0, 2])}, around=around)


def test_composed_see_the_inner_as_the_block():
    net, calls = made("DiT-S/2", depth=1), []

    def named(name):
        def around(k, run, h, at):
            calls.append(f"{name} before")
            h = run(h, at)
            calls.append(f"{name} after")
            return h

        return around

    x, t, cond = torch.randn(2, 3, 8, 8), torch.rand(2), {"label": torch.tensor([0, 2])}
    found = net(x, t, cond, around=composed(named("outer"), named("inner")))
    assert calls == ["outer before", "inner before", "inner after", "outer after"]
    assert torch.equal(found, net(x, t, cond, around=composed()))


def test_tokens_are_put_back_where_they_were():
    h, index = torch.randn(2, 5, 3), torch.tensor([[0, 4], [2, 3]])
    parts = taken(h, index) + 1
    expected = h.clone()
    expected[0, 0] += 1
    expected[0, 4] += 1
    expected[1, 2:4] += 1
    assert torch.equal(put_back(h, index, parts), expected)
