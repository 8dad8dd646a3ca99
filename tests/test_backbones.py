"""Backbones: a contract over every name, the papers' sizes and costs, and what a DiT promises."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import ditkit
from ditkit.backbones import BACKBONES, backbone
from ditkit.backbones.sections.plain import PLAIN
from ditkit.costs.count import count_cost
from ditkit.errors import InputError
from ditkit.kernels.attention import MOST_EXPLICIT_TOKENS, attend
from ditkit.nn.attention import CrossAttention
from ditkit.nn.blocks import (
    AdaLNBlock,
    Block,
    CrossAttentionBlock,
    Head,
    modulated_norm,
)
from ditkit.nn.embeddings import sincos_positions, sincos_table, sinusoid
from ditkit.nn.mlps import TanhGelu
from ditkit.nn.patches import PatchEmbed, unpatchify
from ditkit.nn.registries import CONDITIONINGS

every_conditioning = pytest.mark.parametrize("conditioning", CONDITIONINGS)


def on_meta(name, **fields):
    with torch.device("meta"):
        return backbone(name, **fields)


def shallow(name):
    """A field that leaves fewer of the blocks that are alike: dozens take seconds, even without numbers in them."""
    depth = getattr(BACKBONES[name], "depth", None)
    return {"depth": 2} if isinstance(depth, int) else {"depth": (1,) * len(depth)} if depth else {}


@pytest.mark.parametrize("name", BACKBONES)
def test_contract(name):
    """What the rest of the library needs of any backbone, at its own widths."""
    config = BACKBONES[name]
    learned = config.ratios == (1,)
    net = on_meta(name, classes=10, channels=3, learned_variance=learned, **shallow(name))
    channels = 3 * sum(ratio**2 for ratio in config.ratios)
    outputs = 2 * channels if learned else channels
    x, t = torch.empty(2, channels, 16, 32, device="meta"), torch.empty(2, device="meta")
    cond = {"label": torch.zeros(2, dtype=torch.long, device="meta")}
    net.check_size(16, 32)
    with torch.no_grad():
        assert net(x, t, cond).shape == (2, outputs, 16, 32)
        fused = net.fused()
        assert fused(x, t, cond).shape == (2, outputs, 16, 32)
        state = (channels, 16, 32)
        assert count_cost(fused, state, labelled=True).macs <= count_cost(net, state, True).macs
    assert len(net.blocks) > 1
    assert set(net.blocks) <= set(net.repeated)
    assert {key: value.shape for key, value in net.null(cond).items()} == {"label": (2,)}


@pytest.mark.parametrize("name", PLAIN)
def test_parts_of_networks_of_one_resolution(name):
    """What a level put around one needs of it: three parts, and maps of the size and channels it says."""
    net = on_meta(name, classes=10, channels=3, **shallow(name))
    x, t = torch.empty(2, 3, 16, 32, device="meta"), torch.empty(2, device="meta")
    conditions = net.conditions({"label": torch.zeros(2, dtype=torch.long, device="meta")}, x.shape[2:])
    with torch.no_grad():
        h, c = net.embed(x), net.condition(t, conditions)
        body = net.body(h, c, conditions)
        assert net.head(body, c, x.shape[2:]).shape == x.shape
    shape = net.body_shape
    size = 16 // shape.patch, 32 // shape.patch
    assert net.from_map(torch.empty(2, shape.input_channels, *size, device="meta")).shape == h.shape
    assert net.to_map(body, x.shape[2:]).shape == (2, shape.output_channels, *size)
    assert conditions.label.shape == (2, shape.condition_width)


def test_unet_is_a_shortcut_at_first_and_learns_of_time_and_label():
    """Zero convolutions end every block and the head; the condition reaches every block."""
    net = backbone("UNet", classes=3, channels=1, width=8, depth=1)
    x, t, cond = torch.randn(2, 1, 8, 12), torch.rand(2), {"label": torch.tensor([0, 2])}
    assert net(x, t, cond).abs().max() == 0
    h, c = net.embed(x), net.condition(t, net.conditions(cond, x.shape[2:]))
    for block in net.blocks[: net.depth]:
        assert block(h, c).equal(block.shortcut(h))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    net(x, t, cond).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.blocks.parameters())
    other = {"label": torch.tensor([0, 1])}
    assert net(x, t, cond)[0].allclose(net(x, t, other)[0], atol=1e-5)
    assert not net(x, t, cond)[1].allclose(net(x, t, other)[1], atol=1e-3)


def test_unet_refuses_what_it_cannot_halve():
    net = on_meta("UNet", channels=1, multipliers=(1, 2, 2))
    net.check_size(28, 28)
    with pytest.raises(InputError, match="30x28 cannot be halved 2 times"):
        net.check_size(30, 28)


@every_conditioning
@pytest.mark.parametrize("name", ["DiT-S/8", "SiT-B/4"])
def test_every_size_takes_every_conditioning(name, conditioning):
    net = on_meta(name, classes=10, channels=3, conditioning=conditioning, depth=2)
    x, t = torch.empty(2, 3, 16, 32, device="meta"), torch.empty(2, device="meta")
    cond = {"label": torch.zeros(2, dtype=torch.long, device="meta")}
    with torch.no_grad():
        assert net(x, t, cond).shape == x.shape
        conditions = net.conditions(cond, x.shape[2:])
        tokens, c = net.embed(x), net.condition(t, conditions)
        assert net.body(tokens, c, conditions).shape == tokens.shape


@every_conditioning
def test_closed_form_of_every_conditioning(conditioning):
    """At S/2, with D wide, N deep, T tokens and 4 channels in and out: a block's own, then the rest."""
    net = on_meta("DiT-S/2", classes=10, conditioning=conditioning)
    d, n, t, features = 384, 12, 256, 16
    params, macs = {  # of the conditioning, in every block
        "adaln_zero": (6 * d * (d + 1), 6 * d**2),
        "adaln": (4 * d * (d + 1), 4 * d**2),
        "cross_attention": (4 * d * (d + 1), 2 * t * d**2 + 4 * d**2 + 4 * t * d),
        "in_context": (0, 2 * 12 * d**2 + 2 * ((t + 2) ** 2 - t**2) * d),
    }[conditioning]
    head = 2 if conditioning.startswith("adaln") else 0
    cost = count_cost(net, (4, 32, 32), labelled=True)
    assert cost.params == (
        n * (12 * d**2 + 9 * d + params)  # qkv, proj and mlp with their biases
        + (features + 1) * d + (256 + 1) * d + (d + 1) * d + 11 * d  # patches, time, label
        + head * d * (d + 1) + (d + 1) * features
    )  # fmt: skip
    assert cost.macs == (
        n * (12 * t * d**2 + 2 * t**2 * d + macs)
        + t * features * d + 256 * d + d**2
        + head * d**2 + t * d * features
    )  # fmt: skip


def test_the_clock_a_network_reads():
    for name, config in BACKBONES.items():
        if config.kind in ("MDM", "Matryoshka"):
            continue  # always the released networks' index
        clock = (-1.0, 1.0) if name.startswith("SiT") else (1000.0, -1.0)
        assert (config.time_scale, config.time_shift) == clock
    seen = []
    for name, t, expected in (("DiT", 0.25, 249.0), ("SiT-S/8", 0.25, 0.75)):
        net = tiny(name)
        net.time.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        net(*inputs(n=1, t=t))
        torch.testing.assert_close(seen[-1], sinusoid(torch.tensor([expected])))


def test_cost_leaves_the_network_alone():
    """It may be on any device, training or not, and weights need not be copied."""
    net = tiny()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pointers = [p.data_ptr() for p in net.parameters()]
    cost = count_cost(net, (2, 8, 8), labelled=True)
    assert all(p.device.type == "cpu" for p in net.parameters())
    assert [p.data_ptr() for p in net.parameters()] == pointers
    assert net.training
    for name, value in net.state_dict().items():
        assert value.equal(before[name])
    assert cost == count_cost(net.to("meta"), (2, 8, 8), labelled=True)


def test_cost_counts_trainable_parameters_and_products():
    net = tiny()
    total = sum(p.numel() for p in net.parameters())
    net.label.requires_grad_(False)
    assert count_cost(net, (2, 8, 8), labelled=True).params == total - 11 * 16
    d, tokens, depth = 16, 16, 2
    block = tokens * 12 * d * d + 2 * tokens**2 * d + 6 * d * d  # qkv, proj, mlp; attention; modulation
    rest = tokens * 8 * d + 256 * d + d * d + 2 * d * d + tokens * d * 8  # patches, time, head
    assert count_cost(net, (2, 8, 8), labelled=True).macs == depth * block + rest


# Small real networks


def tiny(name="DiT", seed=0, **fields):
    """Width 16, two blocks, 10 classes, 2 channels; as it is initialised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = {"width": 16, "depth": 2, "heads": 2, "patch": 2, "classes": 10, "channels": 2}
        return backbone(name, **(settings | fields))


def randomised(**fields):
    """The same with every parameter random: at initialisation a DiT's output is zero."""
    net = tiny(**fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def inputs(n=3, height=8, width=8, t=None):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, height, width, generator=generator)
    times = torch.rand(n, generator=generator) if t is None else torch.full((n,), t)
    return x, times, {"label": torch.arange(n) % 10}


@every_conditioning
def test_zero_at_initialisation(conditioning):
    net = tiny(learned_variance=True, conditioning=conditioning)
    x, t, cond = inputs()
    assert net(x, t, cond).abs().max() == 0
    conditions = net.conditions(cond, x.shape[2:])
    tokens, c = net.embed(x), net.condition(t, conditions)
    assert c.abs().max() > 0
    with torch.no_grad():
        moved = net.body(tokens, c, conditions) - tokens
        unconditioned = tokens
        for block in net.blocks:
            unconditioned = Block.forward(block, unconditioned, c)
    if conditioning == "adaln_zero":  # every block is the identity
        assert moved.abs().max() == 0
    else:
        assert (moved.abs().amax(-1) > 0.1).all()
    assert (moved == unconditioned - tokens).all() == (conditioning == "adaln")  # plain norms


@every_conditioning
def test_every_parameter_learns_after_one_step(conditioning):
    """At the start only the last layer has a gradient; two steps later everything has, and it is finite.

    Without gates the blocks learn from the second step on.
    """
    net = tiny(conditioning=conditioning)
    x, t, cond = inputs(n=10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    moved = []
    for _ in range(3):
        optimizer.zero_grad()
        (net(x, t, cond) - 1).square().mean().backward()
        moved.append({name for name, p in net.named_parameters() if p.grad.abs().max() > 0})
        assert all(p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
    assert moved[0] == {"final.linear.weight", "final.linear.bias"}
    assert ("blocks.0.mlp.0.weight" in moved[1]) == (conditioning != "adaln_zero")
    assert moved[2] == {name for name, _ in net.named_parameters()}


@every_conditioning
@torch.no_grad()
def test_images_need_not_be_square(conditioning):
    """Rows and columns are distinguished, and a network runs at any size."""
    net = randomised(conditioning=conditioning)
    x, t, cond = inputs(height=6, width=10)
    out = net(x, t, cond)
    assert out.shape == (3, 2, 6, 10)
    turned = net(x.transpose(2, 3), t, cond)
    assert turned.shape == (3, 2, 10, 6)
    assert (turned.transpose(2, 3) - out).abs().max() > 0.01


@pytest.mark.parametrize("conditioning", ["adaln_zero", "adaln"])
@torch.no_grad()
def test_time_per_token(conditioning):
    net = randomised(conditioning=conditioning)
    x, t, cond = inputs()
    torch.testing.assert_close(net(x, t[:, None].expand(-1, 16), cond), net(x, t, cond), rtol=1e-4, atol=1e-5)
    ramp = t[:, None] * torch.linspace(0, 1, 16)
    assert (net(x, ramp, cond) - net(x, t, cond)).abs().max() > 0.01


@pytest.mark.parametrize("conditioning", ["cross_attention", "in_context"])
@pytest.mark.parametrize("classes", [0, 10])
def test_error_of_a_time_per_token(conditioning, classes):
    x, t, cond = inputs()
    with pytest.raises(InputError, match=r"per image or `backbone\.conditioning` adaln_zero$") as caught:
        tiny(conditioning=conditioning, classes=classes)(x, t[:, None].expand(-1, 16), cond)
    assert "\n" not in str(caught.value)


@every_conditioning
@torch.no_grad()
def test_every_condition_changes_the_output(conditioning):
    net = randomised(conditioning=conditioning)
    x, t, cond = inputs()
    out = net(x, t, cond)
    for other in (net(x + 0.1, t, cond), net(x, 1 - t, cond), net(x, t, {"label": cond["label"] + 1})):
        assert ((other - out).abs().amax((1, 2, 3)) > 1e-3).all()


@every_conditioning
@torch.no_grad()
def test_rows_of_a_batch_are_independent(conditioning):
    net = randomised(conditioning=conditioning)
    x, t, cond = inputs()
    alone = [net(x[i : i + 1], t[i : i + 1], {"label": cond["label"][i : i + 1]}) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), net(x, t, cond), rtol=1e-5, atol=1e-5)


@every_conditioning
def test_bf16_autocast_is_close_in_value_and_gradient(conditioning):
    net = randomised(conditioning=conditioning)
    x, t, cond = inputs()

    def run(enabled):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = net(x, t, cond)
        out.float().square().mean().backward()
        return out.float(), torch.cat([p.grad.flatten() for p in net.parameters()])

    assert next(net.parameters()).dtype == torch.float32
    for exact, rounded in zip(run(False), run(True), strict=True):
        assert rounded.isfinite().all()
        error = ((rounded - exact).norm() / exact.norm()).item()
        assert 1e-6 < error < 0.03  # and bf16 was really used


@every_conditioning
@torch.no_grad()
def test_safetensors_round_trip(tmp_path, conditioning):
    net, other = randomised(conditioning=conditioning), tiny(seed=5, conditioning=conditioning)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    other.load_state_dict(load_file(tmp_path / "net.safetensors"), strict=True)
    assert other(*inputs()).equal(net(*inputs()))


def test_a_deep_copy_is_independent():
    net = randomised()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.final.linear.weight.zero_()
        other.final.linear.bias.zero_()
        assert other(*inputs()).abs().max() == 0
        assert net(*inputs()).abs().max() > 0


@every_conditioning
@torch.no_grad()
def test_unconditional(conditioning):
    net = randomised(classes=0, conditioning=conditioning)
    assert net.label is None
    x, t, _ = inputs()
    out = net(x, t)
    assert out.equal(net(x, t, {}))
    assert ((net(x, 1 - t) - out).abs().amax((1, 2, 3)) > 1e-3).all()
    assert net.null({}) == {}


@every_conditioning
@torch.no_grad()
def test_null_is_one_more_class(conditioning):
    net = randomised(conditioning=conditioning)
    x, t, cond = inputs()
    empty = net.null(cond)
    assert empty["label"].tolist() == [10, 10, 10]
    assert empty["label"].dtype == torch.long
    assert cond["label"].tolist() == [0, 1, 2]
    assert (net(x, t, empty) - net(x, t, cond)).abs().max() > 0.01
    net.label.weight[10].zero_()
    assert net.condition(t, net.conditions(empty, (8, 8))).equal(
        net.combined(net.time(t), torch.zeros(3, 16))
    )


@torch.no_grad()
def test_what_blocks_are_conditioned_on():
    _, t, cond = inputs()
    nets = {name: tiny(conditioning=name) for name in CONDITIONINGS}
    for name in ("adaln_zero", "adaln"):
        net = nets[name]
        assert net.condition(t, net.conditions(cond, (8, 8))).equal(net.time(t) + net.label(cond["label"]))
    for name in ("cross_attention", "in_context"):
        net = nets[name]
        time, label = net.condition(t, net.conditions(cond, (8, 8))).unbind(1)
        assert time.equal(net.time(t))
        assert label.equal(net.label(cond["label"]))
        free = tiny(conditioning=name, classes=0)
        assert free.condition(t, free.conditions({}, (8, 8))).shape == (3, 1, 16)


@torch.no_grad()
def test_in_context_tokens_come_last_and_go():
    """All blocks see the image's tokens, then the two; only the image's return."""
    net = tiny(conditioning="in_context")
    x, t, cond = inputs()
    conditions = net.conditions(cond, x.shape[2:])
    tokens, c = net.embed(x), net.condition(t, conditions)
    seen = []
    net.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    body = net.body(tokens, c, conditions)
    assert seen[0].equal(torch.cat([tokens, c], dim=1))
    after = seen[0]
    for block in net.blocks:
        after = block(after, c)
    assert body.equal(after[:, :16])


# Parts


@pytest.mark.parametrize("tokens", [1, 5, MOST_EXPLICIT_TOKENS])
def test_explicit_attention_is_the_fused_one(tokens, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    q, k, v, cotangent = (torch.randn(2, 3, tokens, 8, generator=generator) for _ in range(4))
    fused, calls = F.scaled_dot_product_attention, []
    counted = lambda *args, **kwargs: calls.append(1) or fused(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)

    def run(function):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = function(*leaves)
        return out.detach(), *torch.autograd.grad((out * cotangent).sum(), leaves)

    explicit = run(attend)
    assert not calls
    for ours, theirs in zip(explicit, run(fused), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v), explicit[0], rtol=1e-4, atol=1e-5)
    assert len(calls) == 1


def test_long_sequences_use_the_fused_attention(monkeypatch):
    calls = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kwargs: calls.append(1))
    attend(*(torch.zeros(1, 1, MOST_EXPLICIT_TOKENS + 1, 2, requires_grad=True) for _ in range(3)))
    assert calls == [1]


@pytest.mark.parametrize("tokens", [64, MOST_EXPLICIT_TOKENS + 8])
def test_what_all_keys_have_in_common_does_not_spoil_gradients_in_bf16(tokens):
    """A network of clips was lost by it: the gradients of queries and keys were noise of one and a half times their size."""
    draw = torch.Generator().manual_seed(0)
    normal = [torch.randn(2, 3, tokens, 32, generator=draw) for _ in range(4)]
    common = torch.randn(3, 2, 3, 1, 32, generator=draw)  # of queries, keys and values
    q, k, v = (
        (part / 4 + shift).bfloat16()
        for part, shift in zip(normal[:3], (common[0], 6 * common[1], 2 * common[2]), strict=True)
    )

    def gradients(*inputs):
        leaves = [part.clone().requires_grad_() for part in inputs]
        (attend(*leaves).float() * normal[3]).sum().backward()
        return [leaf.grad.float() for leaf in leaves]

    for exact, found in zip(gradients(q.float(), k.float(), v.float()), gradients(q, k, v), strict=True):
        assert (found - exact).norm() < 0.05 * exact.norm()


def test_cross_attention_with_few_to_attend_to_is_explicit_at_any_size(monkeypatch):
    """What takes memory is the product of both lengths."""
    calls = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kwargs: calls.append(1))
    q = torch.zeros(1, 1, MOST_EXPLICIT_TOKENS**2 // 2, 2, requires_grad=True)
    attend(q, torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert calls == []
    attend(q, torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2))
    assert calls == [1]


@pytest.mark.parametrize("grad", [False, True])
def test_cross_attention(grad):
    """Weights of every head by hand; the sequence may have any length."""
    attention = CrossAttention(8, 2)
    x, sequence = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    with torch.set_grad_enabled(grad):
        out = attention(x, sequence)
    k, v = attention.kv(sequence).chunk(2, dim=-1)
    heads = []
    for columns in (slice(0, 4), slice(4, 8)):
        weights = (attention.q(x)[..., columns] @ k[..., columns].mT / 2).softmax(-1)
        heads.append(weights @ v[..., columns])
    torch.testing.assert_close(out, attention.proj(torch.cat(heads, -1)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_cross_attention_block_takes_a_sequence_of_any_length():
    """As a set: neither order nor repeating every condition changes anything. Room for a text."""
    block = CrossAttentionBlock(16, 2, 4.0)
    x, c = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    out = block(x, c)
    assert out.shape == x.shape
    torch.testing.assert_close(block(x, c.flip(1)), out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block(x, torch.cat([c, c], 1)), out, rtol=1e-4, atol=1e-5)
    assert (block(x, c[:, :6]) - out).abs().max() > 1e-3


@torch.no_grad()
def test_what_blocks_compute():
    """Every branch begins with a norm; cross-attention is between self-attention and MLP."""
    x, c, sequence = torch.randn(2, 5, 16), torch.randn(2, 16), torch.randn(2, 2, 16)

    def normal(x):
        return F.layer_norm(x, (16,), eps=1e-6)

    block = CrossAttentionBlock(16, 2, 4.0)
    h = x + block.attention(normal(x))
    plain = h + block.mlp(normal(h))
    torch.testing.assert_close(Block.forward(block, x, c), plain)
    h = h + block.cross(normal(h), sequence)
    torch.testing.assert_close(block(x, sequence), h + block.mlp(normal(h)))

    block = AdaLNBlock(16, 2, 4.0)
    torch.nn.init.normal_(block.modulation.linear.weight)
    vectors = block.modulation.linear(F.silu(c))[:, None]
    shift1, scale1, shift2, scale2 = vectors.chunk(4, dim=-1)
    h = x + block.attention(normal(x) * (1 + scale1) + shift1)
    torch.testing.assert_close(block(x, c), h + block.mlp(normal(h) * (1 + scale2) + shift2))

    head = Head(16, 3)
    torch.nn.init.normal_(head.linear.weight)
    torch.testing.assert_close(head(x, c), head.linear(normal(x)))


def test_modulated_norm():
    x, shift, scale = torch.randn(2, 5, 8), torch.randn(2, 1, 8), torch.randn(2, 1, 8)
    centred = x - x.mean(-1, keepdim=True)
    norm = centred / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(modulated_norm(x, shift, scale), norm * (1 + scale) + shift)


def test_patches_there_and_back():
    """A patch embedding that copies pixels, undone by unpatchify, on a grid that is not square."""
    x = torch.randn(2, 3, 4, 6)
    embed = PatchEmbed(3, 2, 12)
    with torch.no_grad():
        # A feature of unpatchify is (row, column, channel).
        embed.proj.weight.copy_(torch.eye(12).reshape(2, 2, 3, 12).permute(3, 2, 0, 1))
        assert unpatchify(embed(x), embed.grid(4, 6), 2).equal(x)


def test_tokens_are_in_row_major_order():
    embed = PatchEmbed(1, 2, 4)
    x = torch.zeros(1, 1, 4, 6)
    x[0, 0, 2:, :2] = 1.0  # second row, first column of a 2 x 3 grid
    tokens = embed(x) - embed(torch.zeros_like(x))
    assert (tokens.abs().sum(-1) > 0).tolist() == [[False, False, False, True, False, False]]


def test_positions_tell_columns_from_rows():
    table = sincos_positions(3, 5, 8).reshape(3, 5, 8)
    omega = torch.tensor([1.0, 0.01])
    for row, column in ((0, 0), (2, 4), (1, 3)):
        expected = [f(n * omega) for n in (column, row) for f in (torch.sin, torch.cos)]
        torch.testing.assert_close(table[row, column], torch.cat(expected))


def test_positions_ignore_the_default_device():
    sincos_table.cache_clear()
    with torch.device("meta"):
        assert sincos_positions(2, 2, 8).device.type == "cpu"


def test_sinusoid_of_any_shape():
    t = torch.tensor([[0.0, 1.0, 2.5]])
    table = sinusoid(t, dim=4)
    assert table.shape == (1, 3, 4)
    expected = torch.stack([t.cos(), (t / 100).cos(), t.sin(), (t / 100).sin()], -1)
    torch.testing.assert_close(table, expected)


# Errors


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("DiT-M/2", {}, "unknown backbone 'DiT-M/2'; choose one of: .*DiT-S/2"),
        ("DiT", {"layers": 3}, r"DiT: unknown 'layers'; "),
        (
            "DiT",
            {"width": 384, "heads": 5},
            "width 384 is not divisible by 5 heads; use one of 1, 2, 3, 4, 6, 8",
        ),
        ("DiT", {"width": 30}, "DiT: width: .*multiple of 4 .not 30"),
        ("DiT-S/2", {"depth": 0}, "DiT-S/2: depth: .*greater than or equal to 1 .not 0"),
        ("DiT", {"conditioning": "film"}, "conditioning: unknown 'film'; there are adaln_zero, .*in_context"),
    ],
)
def test_errors(name, fields, message):
    with pytest.raises(InputError, match=message) as caught:
        on_meta(name, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(8, 7), (7, 8)])
def test_error_of_a_size_that_does_not_divide(size):
    x, t, cond = inputs(height=size[0], width=size[1])
    with pytest.raises(
        InputError, match=f"{size[0]}x{size[1]} is not divisible into patches of 2; .*`backbone.patch`"
    ):
        tiny()(x, t, cond)


@pytest.mark.parametrize("cond", [None, {}])
def test_error_of_a_missing_label(cond):
    x, t, _ = inputs()
    with pytest.raises(InputError, match="has 10 classes: give cond a 'label'"):
        tiny()(x, t, cond)


def test_error_of_positions():
    with pytest.raises(ValueError, match="divisible by 4, not 10"):
        sincos_positions(2, 2, 10)


def test_the_compiled_form_of_gelu_is_the_same_function(monkeypatch):
    x = torch.linspace(-8, 8, 4001)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    written_out = TanhGelu()(x)
    torch.testing.assert_close(written_out, F.gelu(x, approximate="tanh"), rtol=1e-5, atol=1e-6)
    assert TanhGelu()(x.bfloat16()).dtype == torch.bfloat16


def test_networks_ask_no_device():
    """Which way of an operation is quickest where is the business of `ditkit.kernels`."""
    package = Path(ditkit.__file__).parent
    asking = [
        f"{path.name}: {words}"
        for folder in ("nn", "backbones")
        for path in (package / folder).rglob("*.py")
        for words in ("is_compiling", "device.type ==", "device.type !=", "channels_last)")
        if path.name != "compiling.py" and words in path.read_text(encoding="utf-8")
    ]
    assert asking == []
