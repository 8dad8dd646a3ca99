"""Networks that take a text: what they attend to, what "unknown" is, and that nothing else changes."""

import pytest
import torch

import ditkit
from ditkit.backbones import DiTConfig, compile_blocks
from ditkit.errors import InputError
from ditkit.kernels.attention import attend
from ditkit.nn.registries import CONDITIONINGS
from ditkit.sampling import cfg
from ditkit.transports import transport

DIM, M = 12, 5
WAYS = [
    {"text": "cross_attention"},
    {"text": "in_context"},
    {"text_pooled": True},
    {"text": "cross_attention", "text_pooled": True},
    {"text": "in_context", "text_pooled": True},
]
every_way = pytest.mark.parametrize("way", WAYS, ids=str)
TOKENS = [way for way in WAYS if "text" in way]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(classes=3, **fields):
    """A tiny DiT none of whose weights are zero."""
    config = DiTConfig(width=16, depth=2, heads=2, patch=2, **fields)
    text_dim = DIM if fields.get("text", "none") != "none" or fields.get("text_pooled") else 0
    torch.manual_seed(0)
    net = config.build(channels=1, classes=classes, text_dim=text_dim)
    stream = torch.Generator().manual_seed(1)
    for value in net.parameters():
        value.data = value.data + 0.1 * torch.randn(value.shape, generator=stream)
    return net.eval()


def inputs(classes=3):
    cond = {
        "text": normal(3, M, DIM, seed=2),
        "text_mask": torch.arange(M) < torch.tensor([[2], [5], [1]]),
        "text_pooled": normal(3, DIM, seed=3),
    }
    if classes:
        cond["label"] = torch.tensor([0, 1, 2])
    return normal(3, 1, 8, 8), torch.tensor([0.1, 0.5, 0.9]), cond


@every_way
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@torch.no_grad()
def test_what_a_text_says_matters_and_what_is_masked_does_not(way, conditioning):
    net = network(conditioning=conditioning, **way)
    x, t, cond = inputs()
    out = net(x, t, cond)
    padded = {
        **cond,
        "text": torch.cat(
            [torch.where(cond["text_mask"][..., None], cond["text"], 9.0), normal(3, 2, DIM)], 1
        ),
        "text_mask": torch.nn.functional.pad(cond["text_mask"], (0, 2)),
    }
    torch.testing.assert_close(net(x, t, padded), out, rtol=1e-5, atol=1e-5)
    for key, used in (("text", way.get("text")), ("text_pooled", way.get("text_pooled"))):
        conditions = net(x, t, {**cond, key: cond[key] + 1.5 * normal(*cond[key].shape, seed=9)})
        assert ((conditions - out).abs().amax((1, 2, 3)) > 1e-3).all() if used else conditions.equal(out)


@pytest.mark.parametrize("way", TOKENS, ids=str)
@torch.no_grad()
def test_images_do_not_read_each_others_texts(way):
    net = network(**way)
    x, t, cond = inputs()
    for k in range(3):
        alone = net(x[k : k + 1], t[k : k + 1], {key: value[k : k + 1] for key, value in cond.items()})
        torch.testing.assert_close(alone, net(x, t, cond)[k : k + 1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_network_without_text_is_where_one_with_text_starts():
    plain = network()
    net = DiTConfig(width=16, depth=2, heads=2, patch=2, text="cross_attention").build(
        channels=1, classes=3, text_dim=DIM
    )
    unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected.unexpected_keys
    assert all(name.split(".")[0] in ("text", "listeners") for name in unexpected.missing_keys)
    x, t, cond = inputs()
    assert net(x, t, cond).equal(plain(x, t, cond))


@torch.no_grad()
def test_in_context_tokens_stand_behind_the_images():
    net = network(text="in_context")
    x, t, cond = inputs()
    seen = []
    net.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args))
    assert net(x, t, cond).shape == x.shape
    ((tokens, _, at),) = seen
    words = net.conditions(cond, (8, 8)).words
    assert tokens[:, 16:].equal(words.tokens)
    assert at.mask[:, :16].all()
    assert at.mask[:, 16:].equal(cond["text_mask"])


@torch.no_grad()
def test_the_pooled_text_is_embedded_beside_time_and_label():
    net = network(text_pooled=True)
    _, t, cond = inputs()
    expected = net.time(t) + net.label(cond["label"]) + net.conditions(cond, (8, 8)).text
    torch.testing.assert_close(net.condition(t, net.conditions(cond, (8, 8))), expected)
    sequence = network(text_pooled=True, conditioning="cross_attention").condition(
        t, net.conditions(cond, (8, 8))
    )
    assert sequence.shape == (3, 3, 16)


@every_way
def test_unknown_is_learned_and_the_same_whatever_the_text(way):
    net = network(**way)
    x, t, cond = inputs()
    empty = net.null(cond)
    wanted = {"label"} | ({"text", "text_mask"} if "text" in way else set())
    wanted |= {"text_pooled"} if "text_pooled" in way else set()
    assert empty.keys() == wanted
    assert all(empty[key].shape == cond[key].shape for key in empty)
    other = {key: value.flip(0) for key, value in cond.items()}
    torch.testing.assert_close(net(x, t, net.null(other)), net(x, t, empty))
    net(x, t, empty).square().mean().backward()
    learned = [value.grad for name, value in net.text.named_parameters() if name.startswith("null")]
    assert len(learned) == len(way)
    assert all(gradient.abs().max() > 0 for gradient in learned)


@every_way
@torch.no_grad()
def test_guidance_is_one_call_with_the_unknown_text(way):
    net = network(classes=0, **way)
    x, t, cond = inputs(classes=0)
    denoise = transport("linear").denoiser(net)
    guided = cfg(denoise, net.null, 3.0)(x, t, cond).velocity
    own, empty = net(x, t, cond), net(x, t, net.null(cond))
    torch.testing.assert_close(guided, empty + 3 * (own - empty), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
def test_masked_attention_is_attention_to_the_rest(grad):
    """Both forms: written out, as in training on a CPU, and torch's."""
    q, k, v = (normal(2, 3, 4, 8, seed=seed).requires_grad_(grad) for seed in range(3))
    mask = torch.tensor([[True, False, True, True], [False, True, False, False]])
    found = attend(q, k, v, mask=mask)
    for row in range(2):
        kept = mask[row]
        alone = attend(q[row : row + 1], k[row : row + 1, :, kept], v[row : row + 1, :, kept])
        torch.testing.assert_close(found[row : row + 1], alone)


def test_every_repeated_part_is_compiled(monkeypatch):
    net = network(text="cross_attention")
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append(self))
    compile_blocks(net)
    assert compiled == [*net.blocks, *net.listeners]


def test_by_name():
    net = ditkit.backbone("DiT-S/8", classes=10, text_dim=DIM, text="cross_attention", depth=1)
    assert net.text.dim == DIM
    with pytest.raises(InputError, match="UNet takes no text"):
        ditkit.backbone("UNet", text_dim=DIM)


@pytest.mark.parametrize(
    ("fields", "text_dim", "message"),
    [
        ({"text": "cross_attention"}, 0, "needs a text encoder"),
        ({"text_pooled": True}, 0, "needs a text encoder"),
        ({}, DIM, "takes no text; give `backbone.text` cross_attention"),
    ],
)
def test_a_text_and_a_way_of_telling_it_go_together(fields, text_dim, message):
    with pytest.raises(InputError, match=message):
        DiTConfig(width=16, heads=2, **fields).build(channels=1, classes=0, text_dim=text_dim)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "cond has no 'text'"),
        ({"text_mask": None}, "cond has no 'text_mask'"),
        ({"text": normal(3, M, DIM + 1)}, f"has {DIM + 1} channels, this network was built for {DIM}"),
        ({"label": None}, "give cond a 'label'"),
    ],
)
def test_conditions_that_do_not_fit(change, message):
    net = network(text="cross_attention")
    x, t, cond = inputs()
    changed = {key: value for key, value in (cond | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        net(x, t, changed)


def test_a_time_per_token_does_not_reach_a_texts_tokens():
    x, _, cond = inputs()
    times = torch.rand(3, 16)
    with pytest.raises(InputError, match="a time per token or frame leaves a text's tokens without one"):
        network(text="in_context")(x, times, cond)
    assert network(text="cross_attention")(x, times, cond).shape == x.shape
