"""What is put around blocks: every network calls it for every block; tokens that are left out are as if masked."""

import pytest
import torch
from torch import Tensor

from ditkit.backbones import BACKBONES, backbone
from ditkit.errors import InputError
from ditkit.nn.around import Tokens, composed, put_back, taken
from ditkit.nn.routing import routed

SMALL = {
    "DiT-S/2": {"width": 48, "depth": 4, "heads": 4},
    "SiT-S/2": {"width": 48, "depth": 4, "heads": 4},
    "U-DiT-S": {"width": 16, "depth": (1, 1, 1, 1, 1), "heads": 2},
    "UNet": {"width": 32},
    "MDM-64": {"widths": (32, 64), "depth": (1, 1), "attention": (0, 1), "told": 64, "text_width": 32},
    "Matryoshka": {"inner": {"kind": "DiT", "width": 48, "depth": 2, "heads": 4}},
}
DITS = {
    "plain": {},
    "rotary": {"positions": "rotary"},
    "adaln": {"conditioning": "adaln", "positions": "rotary"},
    "cross": {"conditioning": "cross_attention"},
    "in context": {"conditioning": "in_context", "positions": "rotary"},
    "text": {"text": "cross_attention"},
    "text in context": {"text": "in_context", "positions": "rotary"},
    "joint clips": {"tubelet": 1, "positions": "rotary"},
    "joint clips in context": {"tubelet": 1, "positions": "rotary", "text": "in_context"},
    "factorised clips": {"tubelet": 1, "attention": "factorised", "positions": "rotary"},
    "factorised in context": {"tubelet": 1, "attention": "factorised", "text": "in_context"},
}


def made(name: str, **fields):
    torch.manual_seed(0)
    net = backbone(name, channels=3, classes=3, **SMALL[name] | fields)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.2)
    return net.eval()


def inputs(fields: dict, text: bool) -> tuple[Tensor, dict[str, Tensor]]:
    frames = (3,) if fields.get("tubelet") else ()
    cond = {"label": torch.tensor([0, 2])}
    if text:
        mask = torch.tensor([[True, True, False], [True, False, False]])
        cond |= {"text": torch.randn(2, 3, 8), "text_mask": mask}
    return torch.randn(2, 3, *frames, 8, 8), cond


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


@pytest.mark.parametrize("name", [name for name in SMALL if not name.endswith("iT-S/2") or name == "U-DiT-S"])
def test_others_than_a_dit_need_all_tokens(name):
    net = made(name)
    x = torch.randn(2, 15 if name == "Matryoshka" else 3, 8, 8)
    with pytest.raises(InputError, match="only a DiT"):
        net(x, torch.rand(2), {"label": torch.tensor([0, 2])}, around=routed(torch.rand(2, 256), 0.5, 0, 1))


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
    h, index = torch.randn(2, 5, 3), torch.tensor([[0, 4], [2, -1]])
    parts = taken(h, index) + 1
    expected = h.clone()
    expected[0, 0] += 1
    expected[0, 4] += 1
    expected[1, 2] += 1
    assert torch.equal(put_back(h, index, parts), expected)


@pytest.mark.parametrize("fields", DITS.values(), ids=DITS)
def test_routing_at_rate_0_is_the_network(fields):
    text = "text" in fields
    net = made("DiT-S/2", text_dim=8 * text, **fields)
    x, cond = inputs(fields, text)
    t = torch.tensor([0.2, 0.9])
    around = routed(torch.rand(2, 64), 0.0, 1, 2)
    torch.testing.assert_close(net(x, t, cond, around=around), net(x, t, cond))


SEQUENCES = {"cross", "in context", "text in context", "joint clips in context", "factorised in context"}
"""Those with one time per image."""


@pytest.mark.parametrize(
    ("name", "per_token"),
    [(name, each) for name in DITS for each in (False, True) if not each or name not in SEQUENCES],
)
def test_tokens_left_out_are_as_if_masked(name, per_token):
    """Those that stay are what they are where nobody attends to the others; the others are what they were."""
    fields = DITS[name]
    text = "text" in fields
    net = made("DiT-S/2", text_dim=8 * text, **fields)
    x, cond = inputs(fields, text)
    t = torch.rand(2, 3 if "tubelet" in fields else 16) if per_token else torch.tensor([0.2, 0.9])
    draws = torch.rand(2, 64)
    routing, kept = routed(draws, 0.5, 1, 2), {}

    def watched(k, run, h, at):
        kept[k] = at
        return run(h, at)

    def masked(k, run, h, at: Tokens):
        if k not in (1, 2):
            return run(h, at)
        stays = torch.zeros(2, h.shape[-2], dtype=torch.bool)
        stays.scatter_(1, draws[:, : at.own].topk(at.own // 2, largest=False).indices, True)
        stays[:, at.own :] = True
        if at.over != "time":
            mask = stays.repeat_interleave(at.frames, 0) if at.over == "space" else stays.repeat(1, at.frames)
            known = at.among.mask
            at = at._replace(among=at.among._replace(mask=mask if known is None else mask & known))
        else:
            stays = stays[:, : h.shape[-2]]
        out = run(h, at)
        stays = stays[..., None] if h.ndim == 3 else stays[:, None, :, None]
        return torch.where(stays, out, h)

    found = net(x, t, cond, around=composed(watched, routing))
    torch.testing.assert_close(found, net(x, t, cond, around=masked), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, net(x, t, cond), rtol=1e-2, atol=1e-3)


def test_routing_follows_packed_rows():
    """Images that share rows are routed as each is by itself."""
    net = made("DiT-S/2", positions="rotary")
    sizes = [(8, 8), (8, 4), (4, 4), (8, 4)]
    states = [torch.randn(3, *size) for size in sizes]
    t, cond, draws = torch.rand(4), {"label": torch.tensor([0, 1, 2, 0])}, torch.rand(4, 16)
    found = net.packed(states, t, cond, [[0], [2, 1], [3]], around=routed(draws, 0.5, 1, 2))
    for k, state in enumerate(states):
        alone = net(
            state[None],
            t[k : k + 1],
            {"label": cond["label"][k : k + 1]},
            around=routed(draws[k : k + 1], 0.5, 1, 2),
        )
        torch.testing.assert_close(found[k], alone[0], rtol=1e-4, atol=1e-5)
