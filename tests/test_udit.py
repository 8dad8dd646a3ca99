"""U-DiT: the released network's numbers, another implementation of it on any grid, its two forms, its ladder.

`reference` is the released network written from its description, under its names, channel by channel and in
plain (B, C, H, W). The golden numbers were computed with the released code; the weights they belong to are made
by a formula, written to a file as its training script would, and read back.
"""

import copy
import math
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU
from torch._dynamo.testing import CompileCounter

import ditkit
from ditkit.backbones import BACKBONES, backbone, compile_blocks
from ditkit.cli import main
from ditkit.costs.count import count_cost
from ditkit.errors import InputError
from ditkit.interop.udit import udit_names, udit_to_official, udit_to_ours
from ditkit.nn.depthwise import DepthwiseMlp, ReparameterisedMlp
from ditkit.nn.downsampled import (
    KeyValueDownsampledAttention,
    TokenDownsampledAttention,
    merge_parity,
    split_parity,
)
from ditkit.nn.rotary import rotary_positions, rotate
from ditkit.pipeline import Pipeline
from ditkit.recipes import recipe
from ditkit.sampling import SAMPLERS, cfg
from ditkit.transports import PATHS, PREDICTIONS

LEVELS = ("encoder_level_1", "encoder_level_2", "latent", "decoder_level_2", "decoder_level_1")
SMALL = {"width": 8, "heads": 2, "depth": (1, 1, 2, 1, 1)}


def awake(name="U-DiT", **fields):
    """Small, 10 classes, 2 channels, every parameter random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = backbone(name, **({"classes": 10, "channels": 2} | SMALL | fields))
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def inputs(n=2, height=8, width=8, channels=2):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, height, width, generator=generator)
    return x, torch.rand(n, generator=generator), {"label": torch.arange(n)}


def index(*indices):
    return (torch.tensor(indices, dtype=torch.float64) + 1) / 1000


# The released network's numbers


def filled(state):
    """Its weights by formula: value i of the k-th name in plain order is sin(0.7 i + k + 1) / sqrt(fan)."""
    for k, name in enumerate(sorted(state)):
        value = state[name]
        if not name.endswith("logit_scale"):
            fan = value[0].numel() if value.ndim >= 2 else 100
            wave = torch.sin(0.7 * torch.arange(value.numel(), dtype=torch.float64) + k + 1)
            state[name] = (wave / math.sqrt(fan)).view(value.shape).float()
    return state


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """U-DiT-S of those weights, by way of a file."""
    net = backbone("U-DiT-S", classes=1000, learned_variance=True)
    state = filled(udit_to_official(net.state_dict(), (2, 5, 8, 5, 2)))
    assert len(state) == 1043
    file = tmp_path_factory.mktemp("udit") / "0400000.pt"
    torch.save({"ema": state, "args": Namespace(model="U-DiT-S", image_size=256)}, file)
    pipe = ditkit.load(file, CPU)
    file.unlink()
    return pipe


X = torch.sin(0.01 * torch.arange(2 * 4 * 32 * 32, dtype=torch.float64)).view(2, 4, 32, 32).float()
Y = {"label": torch.tensor([7, 1000])}


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=atol)


@pytest.fixture(scope="module")
def out(golden):
    with torch.no_grad():
        return golden.backbone(X, index(500, 7), Y)


def test_golden_forward(out):
    assert out.double().mean().item() == pytest.approx(-0.0112088528, abs=1e-8)
    assert out.double().std().item() == pytest.approx(0.0689703694, abs=3e-8)
    close(out[0, 0, 0, :4], [0.131742, 0.162433, 0.159733, 0.159942])
    close(out[1, 7, 31, 28:], [0.106633, 0.105272, 0.109120, 0.117970])


@torch.no_grad()
def test_golden_fused_form(golden, out):
    """What the pipeline samples with; the form that is trained stays as it is."""
    trained = {name: value.clone() for name, value in golden.backbone.state_dict().items()}
    fused = golden.network
    assert fused is not golden.backbone
    assert not any(isinstance(module, ReparameterisedMlp) for module in fused.modules())
    assert (fused(X, index(500, 7), Y) - out).abs().max() < 1e-5
    assert sum(p.numel() for p in fused.parameters()) == 52_045_240
    assert golden.backbone.state_dict().keys() == trained.keys()
    assert all(value.equal(trained[name]) for name, value in golden.backbone.state_dict().items())
    assert fused.fused() is fused


@torch.no_grad()
def test_golden_guidance(golden):
    """As the released code guides: three channels; the others, and the variance, are the condition's."""
    denoise = cfg(golden.transport.denoiser(golden.backbone), golden.backbone.null, 1.5, channels=3)
    seen = []
    golden.backbone.register_forward_hook(lambda net, args, result: seen.append(result))
    found = denoise(X[:1], index(500), {"label": torch.tensor([7])})
    golden.backbone._forward_hooks.clear()
    close(found.eps[0, :, 0, 0], [0.130445, 0.0282505, 0.0149468, -0.0933357])
    close(seen[0][0, 4:, 0, 0], [-0.0820636, -0.0942307, -0.0169426, 0.0404148])
    assert not seen[0][0, 3:].equal(seen[0][1, 3:])


@torch.no_grad()
def test_golden_clamp(golden):
    """A logit scale beyond ln 100 is ln 100."""
    scales = [p for name, p in golden.backbone.named_parameters() if name.endswith("logit_scale")]
    assert len(scales) == 44
    before = scales[0].clone()
    assert before.allclose(torch.tensor(10.0).log())
    for scale in scales:
        scale.fill_(6.0)
    out = golden.backbone(X, index(500, 7), Y)
    for scale in scales:
        scale.copy_(before)
    assert out.double().std().item() == pytest.approx(0.0701170, abs=1e-7)
    close(out[0, 0, 0, :4], [0.131799, 0.163244, 0.160554, 0.160477])
    close(out[1, 7, 31, 28:], [0.113980, 0.113611, 0.114152, 0.126284])


def test_golden_positions():
    """Position 17 of 16 × 16 is column 1, row 1."""
    cos, sin = rotary_positions(16, 16, 24)[:, 17]
    close(cos[:2], [math.cos(1)] * 2)
    close(sin[:2], [math.sin(1)] * 2)
    close(cos[2:4], [0.976882] * 2)
    close(sin[2:4], [0.213781] * 2)


def test_golden_file_says_what_it_is(golden):
    assert golden.recipe.backbone == BACKBONES["U-DiT-S"]
    assert (golden.classes, golden.recipe.data.size, golden.recipe.codec.kind) == (1000, 256, "vae")
    assert golden.transport == ditkit.transport("ddpm", predict="noise", variance="learned")
    assert golden.record["imported_as"] == "U-DiT"


# Counts

PARAMETERS = {  # of the released networks by module, as they are trained
    "S": [3_552, 33_984, 96_096, 86_400, 192_192, 246_528, 384_384, 634_768, 41_472, 6_122_920, 165_888,
          38_467_648, 2_654_208, 73_920, 6_122_920, 663_552, 37_056, 2_449_168, 331_968, 87_944],
    "B": [7_104, 86_400, 192_192, 246_528, 384_384, 787_968, 768_768, 2_449_184, 165_888, 24_042_320, 663_552,
          152_432_768, 10_616_832, 295_296, 24_042_320, 2_654_208, 147_840, 9_616_928, 1_327_488, 323_336],
    "L": [14_208, 246_528, 384_384, 787_968, 768_768, 2_755_584, 1_537_536, 9_616_960, 663_552, 95_270_560,
          2_654_208, 606_855_424, 42_467_328, 1_180_416, 95_270_560, 10_616_832, 590_592, 38_108_224, 5_309_184,
          1_236_488],
}  # fmt: skip
MODULES = (
    "x_embedder", "t_embedder_1", "y_embedder_1", "t_embedder_2", "y_embedder_2", "t_embedder_3", "y_embedder_3",
    "encoder_level_1", "down1_2", "encoder_level_2", "down2_3", "latent", "up3_2", "reduce_chan_level2",
    "decoder_level_2", "up2_1", "reduce_chan_level1", "decoder_level_1", "output", "final_layer",
)  # fmt: skip
TOTALS = {"S": (58_896_568, 52_045_240), "B": (231_251_304, 204_425_064), "L": (916_335_304, 810_188_488)}


def on_meta(name, **fields):
    with torch.device("meta"):
        return backbone(name, **({"classes": 1000, "learned_variance": True} | fields))


@pytest.mark.parametrize("size", TOTALS)
def test_published_parameters(size):
    """By module of the official names, in their order; a block's closed forms; both totals."""
    net = on_meta(f"U-DiT-{size}")
    state = udit_to_official(net.state_dict(), (2, 5, 8, 5, 2))
    assert list(dict.fromkeys(name.split(".")[0] for name in state)) == list(MODULES)
    for module, expected in zip(MODULES, PARAMETERS[size], strict=True):
        assert sum(v.numel() for name, v in state.items() if name.split(".")[0] == module) == expected
    fused, heads = net.fused(), net.blocks[0].attention.heads
    assert (count(net), count(fused)) == TOTALS[size]
    for block, other in zip(net.blocks[::2], fused.blocks[::2], strict=True):
        d = block.attention.proj.in_features
        assert 2 * count(block) == 32 * d**2 + 234 * d + 2 * heads
        assert 2 * count(other) == 28 * d**2 + 182 * d + 2 * heads


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_official_names_and_shapes():
    """Every one in its place, spelled out from the released code's declarations."""
    h, heads = 96, 4
    expected = {"x_embedder.proj.weight": (h, 4, 3, 3), "x_embedder.proj.bias": (h,)}
    for k, w in enumerate((h, 2 * h, 4 * h), start=1):
        expected |= {
            f"t_embedder_{k}.mlp.0.weight": (w, 256), f"t_embedder_{k}.mlp.0.bias": (w,),
            f"t_embedder_{k}.mlp.2.weight": (w, w), f"t_embedder_{k}.mlp.2.bias": (w,),
            f"y_embedder_{k}.embedding_table.weight": (1001, w),
        }  # fmt: skip

    def level(name, depth, d):
        for i in range(depth):
            for k in (1, 2):
                attn, mlp = f"{name}.{i}.attn{k}.", f"{name}.{i}.mlp{k}."
                expected[f"{attn}logit_scale"] = (heads, 1, 1)
                for module, shape in {
                    f"{attn}to_qkv": (3 * d, d), f"{attn}to_out": (d, d, 1, 1),
                    f"{attn}downsampler.layer": (d, 1, 5, 5), f"{mlp}project_in.0": (d, d, 1, 1),
                    f"{mlp}project_in.1": (2 * d, d, 1, 1), f"{mlp}dwconv.0": (2 * d, 1, 5, 5),
                    f"{mlp}dwconv.1": (2 * d, 1, 3, 3), f"{mlp}dwconv.2": (2 * d, 1, 1, 1),
                    f"{mlp}project_out.0": (d, 2 * d, 1, 1), f"{mlp}project_out.1": (d, d, 1, 1),
                    f"{name}.{i}.adaLN_modulation{k}.1": (6 * d, d),
                }.items():  # fmt: skip
                    expected[f"{module}.weight"], expected[f"{module}.bias"] = shape, (shape[0],)

    level("encoder_level_1", 2, h)
    expected["down1_2.body.0.weight"] = (h // 2, h, 3, 3)
    level("encoder_level_2", 5, 2 * h)
    expected["down2_3.body.0.weight"] = (h, 2 * h, 3, 3)
    level("latent", 8, 4 * h)
    expected["up3_2.body.0.weight"] = (8 * h, 4 * h, 3, 3)
    expected |= {"reduce_chan_level2.weight": (2 * h, 4 * h, 1, 1), "reduce_chan_level2.bias": (2 * h,)}
    level("decoder_level_2", 5, 2 * h)
    expected["up2_1.body.0.weight"] = (4 * h, 2 * h, 3, 3)
    expected |= {"reduce_chan_level1.weight": (2 * h, 2 * h, 1, 1), "reduce_chan_level1.bias": (2 * h,)}
    level("decoder_level_1", 2, 2 * h)
    expected |= {
        "output.weight": (2 * h, 2 * h, 3, 3), "output.bias": (2 * h,),
        "final_layer.out_proj.weight": (8, 2 * h, 3, 3), "final_layer.out_proj.bias": (8,),
        "final_layer.adaLN_modulation.1.weight": (4 * h, 2 * h), "final_layer.adaLN_modulation.1.bias": (4 * h,),
    }  # fmt: skip
    net = on_meta("U-DiT-S")
    found = udit_to_official(net.state_dict(), (2, 5, 8, 5, 2))
    assert [(name, tuple(value.shape)) for name, value in found.items()] == list(expected.items())
    assert len(expected) == 1043
    assert {ours for _, ours in udit_names((2, 5, 8, 5, 2))} == set(net.state_dict())


TINY = {"width": 16, "heads": 2, "depth": (1, 2, 1, 2, 1)}
PIXELS, WIDTHS = (1024, 256, 64, 256, 1024), (16, 32, 64, 32, 32)  # of its stages
DEPTHS = (2, 4, 2, 4, 2)


def tiny_cost(**fields):
    return count_cost(on_meta("U-DiT", **TINY, **fields), (4, 32, 32), labelled=True)


def test_attention_is_a_quarter():
    """Of queries with keys and weights with values; and both ways of downsampling cost the same."""
    costs = {kind: tiny_cost(attention=kind) for kind in ("full", "token", "key_value")}
    products = {kind: cost.modules["blocks.*.attention"].macs for kind, cost in costs.items()}
    assert products["full"] == sum(
        depth * 2 * n**2 * d for n, d, depth in zip(PIXELS, WIDTHS, DEPTHS, strict=True)
    )
    assert products["token"] == products["key_value"] == products["full"] // 4
    assert (
        costs["token"].macs == costs["key_value"].macs < costs["full"].macs
    )  # the paper: 0.90, 0.91, 1.40 G


def test_the_ladder_in_multiply_adds():
    """Depthwise kernels are what the steps cost; the form for training has products that are fused away."""
    channels = sum(depth * n * d for n, d, depth in zip(PIXELS, WIDTHS, DEPTHS, strict=True))
    plain = tiny_cost(ffn="basic", cosine=False, rotary=False).macs
    assert tiny_cost(ffn="basic").macs == tiny_cost(ffn="basic", downsampler="depthwise").macs == plain
    assert tiny_cost(ffn="basic", downsampler="none").macs == plain - 25 * channels
    depthwise = tiny_cost(ffn="depthwise").macs
    assert depthwise == plain + 25 * 2 * channels
    trained = on_meta("U-DiT", **TINY)
    assert count_cost(trained.fused(), (4, 32, 32), labelled=True).macs == depthwise
    assert tiny_cost().macs == depthwise + sum(
        depth * 2 * n * d**2 for n, d, depth in zip(PIXELS, WIDTHS, DEPTHS, strict=True)
    )
