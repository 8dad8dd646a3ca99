"""TREAD: tokens that are left out are as if masked, and what is known of tokens follows them; whole trainings."""

import pytest
import torch
from conftest import CPU, FOUR_STEPS
from torch import Tensor

from ditkit.backbones import BACKBONES, backbone
from ditkit.errors import InputError
from ditkit.nn.around import Tokens, composed
from ditkit.objectives.tread import tread
from ditkit.pipeline import load
from ditkit.recipes import recipe
from ditkit.training.loop import train

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


def inputs(fields: dict, text: bool) -> tuple[Tensor, dict[str, Tensor]]:
    frames = (3,) if fields.get("tubelet") else ()
    cond = {"label": torch.tensor([0, 2])}
    if text:
        mask = torch.tensor([[True, True, False], [True, False, False]])
        cond |= {"text": torch.randn(2, 3, 8), "text_mask": mask}
    return torch.randn(2, 3, *frames, 8, 8), cond


def made(name: str, **fields):
    torch.manual_seed(0)
    net = backbone(name, channels=3, classes=3, **{"width": 48, "depth": 4, "heads": 4} | fields)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.2)
    return net.eval()


@pytest.mark.parametrize("fields", DITS.values(), ids=DITS)
def test_routing_at_rate_0_is_the_network(fields):
    text = "text" in fields
    net = made("DiT-S/2", text_dim=8 * text, **fields)
    x, cond = inputs(fields, text)
    t = torch.tensor([0.2, 0.9])
    around = tread(torch.rand(2, 64), 4, rate=0, first=1, last=2)
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
    routing, kept = tread(draws, 4, rate=0.5, first=1, last=2), {}

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


@pytest.mark.parametrize(
    "fields", [{}, {"text": "cross_attention"}, {"text": "in_context", "registers": 2}], ids=str
)
def test_routing_follows_packed_rows(fields):
    """Packed images are routed as each is by itself; their texts and registers stay."""
    net = made("DiT-S/2", positions="rotary", text_dim=8 * ("text" in fields), **fields)
    sizes = [(8, 8), (8, 4), (4, 4), (8, 4)]
    states = [torch.randn(3, *size) for size in sizes]
    t, draws = torch.rand(4), torch.rand(4, 16)
    cond = {"label": torch.tensor([0, 1, 2, 0]), "text": torch.randn(4, 3, 8)}
    cond["text_mask"] = torch.arange(3) < torch.tensor([[2], [3], [1], [2]])
    found = net.packed(states, t, cond, around=tread(draws, 4, rate=0.5, first=1, last=2))
    for k, state in enumerate(states):
        alone = net(
            state[None],
            t[k : k + 1],
            {key: value[k : k + 1] for key, value in cond.items()},
            around=tread(draws[k : k + 1], 4, rate=0.5, first=1, last=2),
        )
        torch.testing.assert_close(found[k], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("first", "last"), [(4, -1), (1, 4), (3, 2)])
def test_blocks_that_there_are_not_are_refused(first, last):
    with pytest.raises(InputError, match="of 4 blocks, 0 to 3; give others"):
        tread(torch.rand(2, 16), 4, first=first, last=last)


TINY = {
    "backbone": {"width": 24, "depth": 4, "heads": 2, "patch": 2},
    "train": FOUR_STEPS,
}


def weights(out):
    return load(out, CPU).backbone.state_dict()


def test_it_trains_resumes_and_samples(tmp_path):
    """Stopped after half, it ends with the weights of a training that was not; micro-batches leave out the same tokens."""
    whole = recipe("digits").replace(**TINY).replace(train={"routing": "tread:rate=0.5,first=1,last=2"})
    train(whole, tmp_path / "whole", device=CPU, progress=False)
    train(whole.replace(train={"images": 16}), tmp_path / "half", device=CPU, progress=False)
    train(whole, tmp_path / "half", device=CPU, progress=False)
    train(whole.replace(train={"micro_batch": 4}), tmp_path / "micro", device=CPU, progress=False)
    plain = whole.replace(train={"routing": "none"})
    train(plain, tmp_path / "plain", device=CPU, progress=False)
    expected = weights(tmp_path / "whole")
    for name, value in weights(tmp_path / "half").items():
        assert torch.equal(value, expected[name]), name
    for name, value in weights(tmp_path / "micro").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)
    assert any(not torch.equal(value, expected[name]) for name, value in weights(tmp_path / "plain").items())
    images = load(tmp_path / "whole", CPU).generate({"label": [3]}, seeds=[0], steps=2)
    assert images.shape == (1, 1, 8, 8)


def test_it_is_refused_of_other_networks():
    with pytest.raises(InputError, match="work on different tokens; take a DiT"):
        recipe("digits").replace(backbone=BACKBONES["UNet"], train={"routing": "tread"})
