"""Matryoshka Diffusion's networks: the released code's numbers, another implementation of it, nesting, its files.

`reference` is the released network written from its description, under its names and wrapped level in level. The
golden numbers were computed with the released code; the weights they belong to are made by a formula.
"""

import math
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_near

from ditkit.backbones import BACKBONES, MatryoshkaConfig, MDMConfig
from ditkit.config import read_section, write_section
from ditkit.costs.count import count_cost
from ditkit.errors import InputError
from ditkit.interop.mdm import mdm_names, mdm_to_official, mdm_to_ours, read_mdm
from ditkit.layout import pack, unpack
from ditkit.nn.embeddings import sinusoid
from ditkit.nn.mdm import NumberEmbedding
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.tensors import read_tensors

FILE = Path("vis_model.pth")
INNER = {"widths": (32, 64), "depth": (1, 1), "attention": (0, 1), "scale": 8}
OUTER = {"widths": (32, 32), "depth": (1, 1), "scale": 16}
RELEASED = ("MDM-64", "MDM-256", "MDM-1024")


def config(*levels, **fields):
    """Of levels, the highest first, and further fields of the innermost network."""
    inner = MDMConfig(**levels[-1], **({"condition_width": 128, "text_width": 24} | fields))
    return MatryoshkaConfig(inner=inner, levels=levels[:-1]) if levels[1:] else inner


def build(*levels, text_dim=16, classes=0, **fields):
    return made(config(*levels, **fields), text_dim=text_dim, classes=classes)


def made(chosen, *, classes=0, **fields):
    """The network for images of three channels at every level, with its configuration."""
    channels = 3 * sum(ratio**2 for ratio in chosen.ratios)
    net = chosen.build(channels=channels, classes=classes, **fields)
    net.config = chosen
    return net


def run(net, levels, index, text=None, mask=None, micro=None, *, label=None, rows=None):
    """The predictions for all levels, at the time of the released networks' index."""
    cond = {"text": text, "text_mask": mask, "label": label, **(micro or {})}
    cond = {key: value for key, value in cond.items() if value is not None}
    ratios = net.config.ratios
    t = (index.double() + 1) / 1000
    out = net(pack(levels, ratios), t, cond, **({} if rows is None else {"rows": rows}))
    return unpack(out, ratios)


def randomised(*levels, **fields):
    """Every parameter random, so that nothing is hidden behind a zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = build(*levels, **fields)
        for name, parameter in net.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            std = 0.01 if "text.tokens" in name else 0.1  # so that their norm's epsilon shows
            torch.nn.init.normal_(parameter, mean=centre, std=std)
    return net


def wave(function, step, *shape):
    return function(step * torch.arange(math.prod(shape), dtype=torch.float64)).view(shape).float()


LOW, HIGH = wave(torch.sin, 0.01, 2, 3, 8, 8), wave(torch.sin, 0.013, 2, 3, 16, 16)
T = torch.tensor([500, 7])
TEXT = wave(torch.cos, 0.03, 2, 5, 16)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
TOLD = (T, TEXT, MASK)


def pyramid(n, *sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, *size, generator=generator) for size in sizes]


def close(found, expected, atol=4e-6):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=atol)


# The released network's numbers


def golden(*levels):
    """The network whose official weights are made by formula: value i of the k-th name in plain order is
    sin(0.7 i + k + 1) / sqrt(fan)."""
    net = build(*levels)
    state = mdm_to_official(net.state_dict(), net.config)
    for k, name in enumerate(sorted(state)):
        value = state[name]
        fan = value[0].numel() if value.ndim >= 2 else 100
        angles = 0.7 * torch.arange(value.numel(), dtype=torch.float64) + k + 1
        state[name] = (torch.sin(angles) / math.sqrt(fan)).view(value.shape).float()
    net.load_state_dict(mdm_to_ours(state, net.config))
    return net


@torch.no_grad()
def test_golden_of_one_level():
    net = golden(INNER)
    assert (count(net), len(net.state_dict())) == (926_235, 175)
    (out,) = run(net, [LOW], *TOLD)
    assert out.double().mean().item() == pytest.approx(0.0537194667, abs=5e-8)
    assert out.double().std().item() == pytest.approx(0.0569828771, abs=5e-8)
    close(out[0, 0, 0, :4], [0.0987744, 0.1043533, 0.1206288, 0.1201933], 1e-6)
    close(out[1, 2, 7, 4:], [-0.00756167, -0.0052365, 0.0052187, 0.0005683], 1e-6)
    (small,) = run(net, [LOW], *TOLD, {"scale": torch.tensor([4, 100])})
    close(small[0, 0, 0, :4], [0.0987666, 0.1043393, 0.1206034, 0.1201656], 1e-6)
    assert small[1].equal(out[1])  # as large as the level


@pytest.mark.parametrize(
    ("normalised", "mean", "high", "low_mean", "low"),
    [
        (True, 0.0811467, [0.0734656, 0.0988806, 0.1203665], 0.0055953, [0.1036356, 0.1229373, 0.1288760]),
        (False, 0.0820635, [0.0751160, 0.1024761, 0.1266316], 0.0036061, [0.0990557, 0.1118699, 0.1158553]),
    ],
)
@torch.no_grad()
def test_golden_of_two_levels(normalised, mean, high, low_mean, low):
    net = golden(OUTER | {"normalised": normalised}, INNER)
    assert (count(net), len(net.state_dict())) == (1_213_246, 265)
    assert net.config.ratios == (2, 1)
    first, second = run(net, [HIGH, LOW], *TOLD)
    close(first.mean(), mean, 1e-7)
    close(second.mean(), low_mean, 1e-7)
    close(first[0, 0, 0, :3], high)
    close(second[0, 0, 0, :3], low)


def count(net):
    return sum(p.numel() for p in net.parameters())


# Counts


@pytest.mark.parametrize(
    ("name", "size", "params", "tensors", "gmacs"),
    [
        ("MDM-64", 64, 461_359_107, 713, 181.97),
        ("MDM-256", 256, 476_613_958, 889, 294.5),
        ("MDM-1024", 1024, 480_970_057, 1063, 509.3),
    ],
)
def test_published_sizes(name, size, params, tensors, gmacs):
    """And the multiply-adds with 32 tokens of a text; the weights' shapes tell the configuration."""
    net = on_meta(BACKBONES[name])
    assert (count(net), len(net.state_dict())) == (params, tensors)
    ratios = net.config.ratios
    state = (3 * sum(ratio**2 for ratio in ratios), size // ratios[0], size // ratios[0])
    cost = count_cost(net, state, labelled=False, words=32)
    assert cost.params == params
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=2e-4)
    products = sum(part.macs for module, part in cost.modules.items() if module.endswith("attention.*"))
    assert products / 1e9 == pytest.approx(8.48, abs=0.005)
    found = read_mdm(FILE, mdm_to_official(net.state_dict(), net.config))
    assert found.recipe.backbone == BACKBONES[name]
    assert (found.recipe.data.channels, found.recipe.text.dim) == (3, 2048)


def on_meta(chosen):
    with torch.device("meta"):
        return made(chosen, text_dim=2048)


def residual(prefix, fan_in, fan_out):
    shapes = {
        "norm1": (fan_in,), "conv1": (fan_out, fan_in, 3, 3), "time_layer": (2 * fan_out, 1024),
        "norm2": (fan_out,), "conv2": (fan_out, fan_out, 3, 3),
    }  # fmt: skip
    if fan_in != fan_out:
        shapes["conv3"] = (fan_out, fan_in, 1, 1)
    return {f"{prefix}.{module}": shape for module, shape in shapes.items()}


def attention(prefix, c):
    return {
        f"{prefix}.norm": (c,), f"{prefix}.qkv": (3 * c, c, 1, 1), f"{prefix}.norm_cond": (2048,),
        f"{prefix}.kv_cond": (2 * c, 2048), f"{prefix}.proj_out": (c, c, 1, 1), f"{prefix}.ffn.0": (c,),
        f"{prefix}.ffn.1": (4 * c, c, 1, 1), f"{prefix}.ffn.3": (c, 4 * c, 1, 1),
    }  # fmt: skip


def level(prefix, width):
    return {
        f"{prefix}temb_layer1": (1024, 256), f"{prefix}temb_layer2": (1024, 1024),
        f"{prefix}cond_layers.scale.0": (1024, 256), f"{prefix}cond_layers.scale.1": (1024, 1024),
        f"{prefix}conv_in": (width, 3, 3, 3), f"{prefix}norm_out": (width,), f"{prefix}conv_out": (3, width, 3, 3),
    }  # fmt: skip


def stage(prefix, fans, c, layers, resample):
    modules = {}
    for k, fan_in in enumerate(fans):
        modules |= residual(f"{prefix}.resnets.{k}", fan_in, c)
    for k in range(layers):
        modules |= attention(f"{prefix}.attn.{k}", c)
    return modules | ({f"{prefix}.resample": (c, c, 3, 3)} if resample else {})


def official_modules(levels):
    """Every module of the released 1024 network, or of those inside, spelled out from its declarations."""
    inner = "inner_unet." * (levels - 1)
    modules = {
        **level(inner, 256),
        f"{inner}cond_emb": (1024, 2048),
        f"{inner}lm_proj": (2048, 2048),
        **stage(f"{inner}down_blocks.0", [256, 256], 256, 0, True),
        **stage(f"{inner}down_blocks.1", [256, 512], 512, 2, True),
        **stage(f"{inner}down_blocks.2", [512, 768], 768, 10, False),
        **stage(f"{inner}mid_blocks.0", [768], 768, 1, False),
        **stage(f"{inner}mid_blocks.1", [768], 768, 0, False),
        **stage(f"{inner}up_blocks.0", [1536, 1536, 1280], 768, 15, True),
        **stage(f"{inner}up_blocks.1", [1280, 1024, 768], 512, 3, True),
        **stage(f"{inner}up_blocks.2", [768, 512, 512], 256, 0, False),
    }
    outer = [  # widths; channels that come in on the way down and on the way up
        ((64, 128, 256), 256, [[64, 64], [64, 128], [128]], [[512, 384], [384, 256, 192], [192, 128, 128]]),
        ((32, 32, 64), 64, [[32, 32], [32, 32], [32]], [[128, 96], [96, 64, 64], [64, 64, 64]]),
    ]
    for i, (widths, adapter, down, up) in enumerate(outer[: levels - 1]):
        prefix = "inner_unet." * (levels - 2 - i)
        modules |= level(prefix, widths[0])
        modules |= {f"{prefix}{name}_adapter": (adapter, adapter, 3, 3) for name in ("in", "out")}
        for j in range(3):
            modules |= stage(f"{prefix}down_blocks.{j}", down[j], widths[j], 0, j < 2)
            modules |= stage(f"{prefix}up_blocks.{j}", up[j], widths[2 - j], 0, j < 2)
    return modules


@pytest.mark.parametrize(("name", "levels"), [("MDM-64", 1), ("MDM-256", 2), ("MDM-1024", 3)])
def test_official_names_and_shapes(name, levels):
    expected = {}
    for module, shape in official_modules(levels).items():
        expected[f"{module}.weight"] = shape
        if not module.endswith("cond_emb"):
            expected[f"{module}.bias"] = shape[:1]
    net = on_meta(BACKBONES[name])
    found = mdm_to_official(net.state_dict(), net.config)
    assert {key: tuple(value.shape) for key, value in found.items()} == expected
    assert sum(key.endswith("qkv.weight") for key in found) == 31
    ours = mdm_to_ours(found, net.config)
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in net.state_dict().items()
    }


# Another implementation: levels wrapped in one another


def reference(state, configs, levels, t, text, mask, scale, masked=False):
    """The released forward pass under its names; `configs` the configurations, highest first."""

    def conv(name, h, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(h, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def linear(name, h):
        return F.linear(h, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name, h):
        return F.group_norm(h, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def embedded(first, second, number):
        half = state[f"{first}.weight"].shape[1] // 2
        angles = number.float()[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        return linear(second, F.silu(linear(first, torch.cat([angles.sin(), angles.cos()], dim=1))))

    def resnet(name, h, temb):
        a, b = linear(f"{name}.time_layer", F.silu(temb))[..., None, None].chunk(2, dim=1)
        inside = norm(f"{name}.norm2", conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", h))))
        inside = conv(f"{name}.conv2", F.silu(inside * (1 + a) + b))
        return inside + (conv(f"{name}.conv3", h) if f"{name}.conv3.weight" in state else h)

    def attend(name, h, words):
        batch, c, height, width = h.shape
        split = (batch, 8, c // 8, -1)
        q, k, v = (
            part.reshape(split) for part in conv(f"{name}.qkv", norm(f"{name}.norm", h)).chunk(3, dim=1)
        )
        normed = F.layer_norm(
            words, words.shape[-1:], state[f"{name}.norm_cond.weight"], state[f"{name}.norm_cond.bias"], 1e-5
        )
        ck, cv = (part.mT.reshape(split) for part in linear(f"{name}.kv_cond", normed).chunk(2, dim=-1))
        factor = (c // 8) ** -0.25
        logits, others = (torch.einsum("bhcq,bhck->bhqk", q * factor, keys * factor) for keys in (k, ck))
        if masked:
            others = others + torch.where(mask, 0.0, -torch.inf)[:, None, None]
        both = torch.einsum("bhqk,bhck->bhcq", logits.softmax(-1), v)
        both = both + torch.einsum("bhqk,bhck->bhcq", others.softmax(-1), cv)
        h = h + conv(f"{name}.proj_out", both.reshape(batch, c, height, width))
        return h + conv(f"{name}.ffn.3", F.gelu(conv(f"{name}.ffn.1", norm(f"{name}.ffn.0", h))))

    root = "inner_unet." * (len(configs) - 1)
    words = linear(f"{root}lm_proj", text)
    pooled = (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    sentence = linear(f"{root}cond_emb", pooled)

    def unet(depth, feature):
        """(predictions from here inwards, the feature before the head)"""
        p, chosen, x = "inner_unet." * depth, configs[depth], levels[depth]
        limit = chosen["scale"]
        known = torch.full((len(x),), float(limit)) if scale is None else (scale / limit).clamp(max=1) * limit
        temb = embedded(f"{p}temb_layer1", f"{p}temb_layer2", t) + sentence
        temb = temb + embedded(f"{p}cond_layers.scale.0", f"{p}cond_layers.scale.1", known)
        if chosen.get("normalised"):
            x = torch.stack([image / image.flatten().std() for image in x])
        h = conv(f"{p}conv_in", x) + feature
        resolutions = len(chosen["widths"])
        layers = chosen.get("attention", (0,) * resolutions)
        skips = [h]
        for j in range(resolutions):
            for k in range(chosen["depth"][j]):
                h = resnet(f"{p}down_blocks.{j}.resnets.{k}", h, temb)
                for i in range(layers[j]):
                    h = attend(f"{p}down_blocks.{j}.attn.{k * layers[j] + i}", h, words)
                skips.append(h)
            if j < resolutions - 1:
                h = conv(f"{p}down_blocks.{j}.resample", h, stride=2)
                skips.append(h)
        inner = []
        if depth == len(configs) - 1:
            h = attend(f"{p}mid_blocks.0.attn.0", resnet(f"{p}mid_blocks.0.resnets.0", h, temb), words)
            h = resnet(f"{p}mid_blocks.1.resnets.0", h, temb)
        else:
            inner, inside = unet(depth + 1, conv(f"{p}in_adapter", h))
            h = h + conv(f"{p}out_adapter", inside)
        for j in range(resolutions):
            count = chosen["depth"][resolutions - 1 - j] + 1
            heads = layers[resolutions - 1 - j]
            for k in range(count):
                h = resnet(f"{p}up_blocks.{j}.resnets.{k}", torch.cat([h, skips.pop()], dim=1), temb)
                for i in range(heads):
                    h = attend(f"{p}up_blocks.{j}.attn.{k * heads + i}", h, words)
            if j < resolutions - 1:
                h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                h = conv(f"{p}up_blocks.{j}.resample", h)
        return [conv(f"{p}conv_out", F.silu(norm(f"{p}norm_out", h))), *inner], h

    return unet(0, 0.0)[0]


DEEP = {"widths": (32, 64, 96), "depth": (2, 1, 2), "attention": (0, 1, 2), "scale": 64}
THREE = (
    {"widths": (32, 32), "depth": (1, 1), "scale": 32},
    {"widths": (32, 64, 32), "depth": (2, 1, 1), "scale": 16, "normalised": True},
    DEEP | {"scale": 4},
)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("levels", "sizes", "scale"),
    [
        ((DEEP,), [(8, 12)], None),
        ((OUTER, INNER), [(16, 8), (8, 4)], torch.tensor([3, 11])),
        (THREE, [(32, 64), (16, 32), (4, 8)], torch.tensor([12, 5])),
    ],
)
def test_reference(levels, sizes, scale, masked):
    """Any grid, depth and nesting; sizes of images, which some levels read in full and others not."""
    net = randomised(*levels, masked=masked)
    images = pyramid(2, *sizes)
    state = mdm_to_official(net.state_dict(), net.config)
    expected = reference(state, levels, images, T, TEXT, MASK, scale, masked)
    found = run(net, images, *TOLD, None if scale is None else {"scale": scale})
    assert [out.shape for out in found] == [image.shape for image in images]
    for out, other in zip(found, expected, strict=True):
        assert other.std() > 0.05
        assert ((out - other).norm() / other.norm()).item() < 1e-5


def test_sines_before_cosines():
    embedding, number = NumberEmbedding(16), torch.tensor([0.0, 3.0])
    seen = []
    embedding[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    embedding(number)
    cosines, sines = sinusoid(number, 4).chunk(2, dim=-1)
    assert seen[0].equal(torch.cat([sines, cosines], dim=-1))


# Words


@torch.no_grad()
def test_padding():
    """As released, attention takes padding for words, so that its length shows; masked, it does not."""
    longer = F.pad(TEXT * MASK[..., None], (0, 0, 0, 3)), F.pad(MASK, (0, 3))
    for masked in (False, True):
        net = randomised(INNER, masked=masked)
        (short,) = run(net, [LOW], T, TEXT * MASK[..., None], MASK)
        (long,) = run(net, [LOW], T, *longer)
        assert torch.allclose(short, long, atol=1e-5) == masked
    changed = TEXT.clone()
    changed[1, 4] += 1.0
    (out,) = run(net, [LOW], T, changed, MASK)
    (same,) = run(net, [LOW], *TOLD)
    torch.testing.assert_close(out, same)


@torch.no_grad()
def test_text_without_a_token():
    net = randomised(INNER)
    (out,) = run(net, [LOW], T, TEXT, torch.zeros_like(MASK))
    assert out.isfinite().all()


@torch.no_grad()
def test_labels_instead_of_a_text():
    net = randomised(OUTER, INNER, text_dim=0, classes=4)
    levels = [HIGH, LOW]
    outs = [run(net, levels, T, label=torch.tensor(label)) for label in ([0, 1], [0, 4])]
    for first, second in zip(*outs, strict=True):
        assert first[0].equal(second[0])
        assert not first[1].allclose(second[1])
    assert not any("words" in name for name in net.state_dict())


# Nesting


def test_what_starts_at_zero():
    zero = {
        name.rpartition(".")[0]
        for name, p in build(*THREE).named_parameters()
        if name.endswith("weight") and not p.any()
    }
    endings = ("block.conv2", "proj", "mlp.2", "scale.embedding.2", "final", "inward", "outward")
    expected = {
        name.rpartition(".")[0]
        for name in build(*THREE).state_dict()
        if name.rpartition(".")[0].endswith(endings) and not name.endswith("time.2.weight")
    }
    assert zero == expected
    net = build(*THREE)
    for name in zero:
        assert not net.get_submodule(name).bias.any()


@torch.no_grad()
def test_a_network_around_which_levels_are_put():
    """Predicts what it did, to the bit, and the new levels nothing; its weights keep their names."""
    inner = randomised(THREE[2])
    small = pyramid(2, (8, 8))
    (before,) = run(inner, small, *TOLD)
    net = build(*THREE)
    net.inner.load_state_dict(inner.state_dict())
    outs = run(net, [*pyramid(2, (64, 64), (32, 32)), *small], *TOLD)
    assert outs[2].equal(before)
    assert not outs[0].any()
    assert not outs[1].any()


def test_gradients_reach_every_parameter():
    """And those of the highest level alone all but the heads inside, by way of both adapters."""
    net = randomised(*THREE)
    levels = pyramid(2, (32, 32), (16, 16), (4, 4))
    outs = run(net, levels, *TOLD)
    outs[0].square().mean().backward(retain_graph=True)
    untouched = {name.rpartition(".")[0] for name, p in net.named_parameters() if not p.grad.any()}
    assert untouched == {f"{at}.{part}" for at in ("inner.level", "outer.0") for part in ("norm", "final")}
    sum(out.square().mean() for out in outs[1:]).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@torch.no_grad()
def test_mixed_resolutions():
    """Images beyond `rows` are what they are without the level; the first what they are by themselves."""
    net = randomised(*THREE)
    levels = pyramid(4, (32, 32), (16, 16), (4, 4))
    t, text = torch.tensor([3, 500, 999, 40]), wave(torch.cos, 0.03, 4, 5, 16)
    mask, scale = torch.ones(4, 5, dtype=torch.bool), torch.tensor([3, 7, 9, 30])
    mask[3, 2:] = False
    inputs = (t, text, mask, {"scale": scale})
    whole = run(net, levels, *inputs)
    mixed = run(net, levels, *inputs, rows=(1, 3))
    assert not mixed[0][1:].any()
    assert not mixed[1][3:].any()
    two, one = (build(*THREE[i:]) for i in (1, 2))
    two.load_state_dict({name: net.state_dict()[name] for name in two.state_dict()})
    one.load_state_dict(two.inner.state_dict())
    without = run(two, levels[1:], *inputs), run(one, levels[2:], *inputs)
    for level, expected in enumerate(whole):
        assert_near(mixed[level][:1], expected[:1])
    for level in (1, 2):
        assert_near(mixed[level][1:3], without[0][level - 1][1:3])
        assert (mixed[level][1] - whole[level][1]).abs().max() > 0.01
    assert_near(mixed[2][3:], without[1][0][3:])
    again = run(net, levels, *inputs, rows=[4, 4])
    assert all(a.equal(b) for a, b in zip(again, whole, strict=True))


@torch.no_grad()
def test_half_precision():
    net = randomised(OUTER, INNER)
    exact = run(net, [HIGH, LOW], *TOLD)
    with torch.autocast("cpu", torch.bfloat16):
        rough = run(net, [HIGH, LOW], *TOLD)
    for a, b in zip(exact, rough, strict=True):
        assert 0 < ((a - b.float()).norm() / a.norm()).item() < 0.05


# Files


def saved(folder, state):
    """As the released training script saves: beside the weights, arguments of classes it alone has."""
    module = ModuleType("language_models")
    module.Factory = type("Factory", (), {"__module__": "language_models"})
    arguments = Namespace(vocab="t5.vocab", language_model=module.Factory())
    file = folder / "vis_model_000100.pth"
    sys.modules[module.__name__] = module
    try:
        torch.save({"state_dict": state, "batch_num": 100, "loss": 0.1, "args": arguments}, file)
    finally:
        del sys.modules[module.__name__]
    return file


@torch.no_grad()
def test_a_file_there_and_back(tmp_path):
    net = randomised(*THREE)
    state = mdm_to_official(net.state_dict(), net.config)
    file = saved(tmp_path, state)
    with pytest.raises(ModuleNotFoundError):
        torch.load(file, weights_only=False)
    found = read_mdm(file, read_tensors(file)["state_dict"], size=4)
    assert found.recipe.backbone == net.config
    other = made(found.recipe.backbone, text_dim=found.recipe.text.dim)
    other.load_state_dict(found.weights)
    back = mdm_to_official(other.state_dict(), found.recipe.backbone)
    assert back.keys() == state.keys()
    assert all(back[name].equal(value) for name, value in state.items())


GRAMMAR = [
    config({"widths": (32,), "depth": (1,), "attention": (0,)}, condition_width=8),
    config(DEEP, heads=4),
    config({"widths": (64, 32), "depth": (3, 1), "attention": (2, 0)}, condition_width=64, text_width=5),
    config(
        {"widths": (32, 64), "depth": (2, 1), "scale": 128},
        {"widths": (96,), "depth": (1,), "attention": (1,)},
    ),
    config(
        {"widths": (32, 32, 32, 64), "depth": (1, 2, 3, 1), "scale": 1024},
        {"widths": (32, 64), "depth": (1, 2), "normalised": True},
        DEEP,
    ),
]


@pytest.mark.parametrize("chosen", GRAMMAR)
def test_shapes_tell_the_configuration(chosen):
    with torch.device("meta"):
        net = made(chosen, text_dim=7)
    heads = (chosen.inner if isinstance(chosen, MatryoshkaConfig) else chosen).heads
    found = read_mdm(FILE, mdm_to_official(net.state_dict(), chosen), heads=heads)
    assert found.recipe.backbone == chosen
    assert (found.recipe.data.channels, found.recipe.text.dim) == (3, 7)
    assert {name: value.shape for name, value in found.weights.items()} == {
        name: value.shape for name, value in net.state_dict().items()
    }
    official, ours = zip(*mdm_names(chosen), strict=True)
    assert len(set(official)) == len(official)
    assert len(set(ours)) == len(ours)


def test_files_that_do_not_fit():
    with torch.device("meta"):
        net = build(OUTER, INNER)
    state = mdm_to_official(net.state_dict(), net.config)

    def changed(**values):
        return {name: value for name, value in (state | values).items() if value is not None}

    empty = torch.empty(3, device="meta")
    for values, message in (
        ({"temb_layer1.weight": None}, "temb_layer1.weight missing"),
        ({"inner_unet.lm_proj.weight": None}, "lm_proj.weight is missing"),
        ({"inner_unet.up_blocks.0.attn.1.qkv.bias": None}, "missing: inner_unet.up_blocks.0.attn.1.qkv.bias"),
        ({"interp_layer1.weight": empty}, "not expected: interp_layer1.weight"),
        ({"out_adapter.bias": empty}, r"of another shape: out_adapter.bias \(3,\) instead of \(32,\)"),
        ({"conv_in.bias": empty}, "of another shape: conv_in.bias"),
        ({"inner_unet.lm_head.0.attn.qkv.weight": empty}, "lm_head"),
        ({"inner_unet.mid_blocks.0.attn.0.norm.weight": None}, "missing"),
        ({"inner_unet.down_blocks.0.resnets.0.conv1.weight": empty}, r"conv1.weight is \(3,\)"),
        (
            {"inner_unet.down_blocks.7.resnets.3.norm1.weight": empty},
            "down_blocks.2.resnets.0.conv1.weight is missing",
        ),
        ({"inner_unet.down_blocks.1.attn.0.norm": empty, "down_blocks.0.attn.0.norm": empty}, "not expected"),
        ({"down_blocks.3.attn.0.norm.weight": empty}, "down_blocks.2.resnets.0.conv1.weight is missing"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            read_mdm(FILE, changed(**values))
        assert str(caught.value).startswith("vis_model.pth: ")
    with pytest.raises(InputError, match="heads"):
        read_mdm(FILE, state, heads=7)


# Errors


def test_rows_that_do_not_fit():
    net = build(OUTER, INNER)
    for rows in ((), (-1,), (3,), (1, 2)):
        with pytest.raises(InputError, match="rows"):
            run(net, [HIGH, LOW], *TOLD, rows=rows)
    with pytest.raises(InputError, match="rows"):
        run(build(*THREE), pyramid(2, (32, 32), (16, 16), (4, 4)), *TOLD, rows=(2, 1))


def test_conditions_that_do_not_fit():
    net = build(INNER)
    with pytest.raises(
        InputError, match=r"17x16 cannot be halved 1 times; change `data.size` to a multiple of 2 .*widths"
    ):
        net.check_size(17, 16)
    with pytest.raises(InputError, match="12 channels, this network was built for 16"):
        run(net, [LOW], T, TEXT[..., :12], MASK)
    with pytest.raises(InputError, match="takes a text"):
        run(net, [LOW], T)
    with pytest.raises(InputError, match="has 2 classes"):
        run(build(INNER, text_dim=0, classes=2), [LOW], T)
    with pytest.raises(InputError, match="predicts no variance"):
        MatryoshkaConfig().build(channels=15, classes=0, out_channels=30)


def test_configurations(tmp_path):
    for name in RELEASED:
        write_section(BACKBONES[name], tmp_path / "mdm.json")
        assert read_section(type(BACKBONES[name]), tmp_path / "mdm.json") == BACKBONES[name], name
    assert [BACKBONES[name].ratios for name in RELEASED] == [(1,), (4, 1), (16, 4, 1)]
    for kind, values, message in (
        (MDMConfig, {"widths": [40]}, "widths.0.*multiple of 32"),
        (MDMConfig, {"widths": [32, 32], "depth": [1]}, "2, 1 and 2 entries"),
        (MDMConfig, {"condition_width": 12}, "condition_width.*multiple of 8"),
        (MatryoshkaConfig, {"levels": []}, "levels"),
        (MatryoshkaConfig, {"levels": [{"widths": [32, 32], "depth": [1]}]}, "2 and 1 entries"),
        (MatryoshkaConfig, {"levels": [{"widths": [32], "depth": [1]}]}, "as large as the one inside"),
        (MatryoshkaConfig, {"inner": "DiT-Q"}, "unknown backbone 'DiT-Q' inside"),
    ):
        with pytest.raises(InputError, match=message):
            kind.checked(values, "network")
    with pytest.raises(InputError, match="width 64 is not divisible by 7 heads"):
        build(INNER, heads=7)


def test_files_with_the_earlier_name_of_a_width_are_read():
    """`told` is `condition_width` now, also of a network with levels around it."""
    values = recipe("mdm-cc12m-64").model_dump(mode="json")
    for backbone in (
        values["backbone"],
        nested := recipe("mdm-cc12m-256").model_dump(mode="json")["backbone"],
    ):
        own = backbone.get("inner", backbone)
        own["told"] = own.pop("condition_width")
    assert Recipe.recorded(values, "file").backbone == recipe("mdm-cc12m-64").backbone
    whole = recipe("mdm-cc12m-256").model_dump(mode="json") | {"backbone": nested}
    assert Recipe.recorded(whole, "file").backbone == recipe("mdm-cc12m-256").backbone
