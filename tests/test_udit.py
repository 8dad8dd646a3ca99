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
