"""What a DiT's blocks can be made of: each part by its formula, all of them with every conditioning, text and attention."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, FOUR_STEPS

from ditkit.backbones import DiTConfig, backbone, compile_blocks
from ditkit.costs.count import count_cost
from ditkit.errors import InputError
from ditkit.first_values import build
from ditkit.kernels.rotation import rotate
from ditkit.nn.around import checkpointing
from ditkit.nn.attention import Arrangement, FirstValues, SelfAttention
from ditkit.nn.mlps import ConvolvedMlp, GatedMlp, Mlp, on_grid
from ditkit.nn.norms import NORMS
from ditkit.nn.parts import Parts
from ditkit.nn.patches import ConvolutionalStem
from ditkit.nn.positions import Axis
from ditkit.nn.registries import CONDITIONINGS
from ditkit.nn.rotary import rotary_positions
from ditkit.objectives.tread import tread
from ditkit.pipeline import load
from ditkit.recipes import recipe
from ditkit.training.loop import train

DIM = 8  # of texts
ALONE = {
    "norm": "rms", "qk_norm": True, "mlp": "swiglu", "value_residual": True, "registers": 3, "stem": "convolutional",
}  # fmt: skip
TOGETHER = [ALONE, ALONE | {"mlp": "depthwise"}]
SMALL = {"width": 16, "depth": 4, "heads": 2, "patch": 2, "classes": 3, "channels": 2}


def made(**fields):
    """A tiny DiT all of whose parameters are random."""
    torch.manual_seed(0)
    net = backbone("DiT", **SMALL | fields)
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.2)
    return net.eval()


def inputs(net, frames=3):
    torch.manual_seed(1)
    x = torch.randn(2, 2, *((frames,) if net.config.tubelet else ()), 8, 6)
    cond = {"label": torch.tensor([0, 2])}
    if net.text_dim:
        mask = torch.tensor([[True, True, False], [True, False, False]])
        cond |= {"text": torch.randn(2, 3, DIM), "text_mask": mask, "text_pooled": torch.randn(2, DIM)}
    return x, torch.tensor([0.2, 0.9]), cond


# --- parts by their formulas -----------------------------------------------------------------------


def test_rms_norm():
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(NORMS["rms"](x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_norm_of_tokens_is_the_chosen_one(conditioning, monkeypatch):
    net = made(norm="rms", conditioning=conditioning, text="cross_attention", text_dim=DIM)
    x, t, cond = inputs(net)
    conditions, seen, normal = (
        net.conditions(cond, x.shape[2:]),
        [],
        F.layer_norm,
    )  # texts are normed otherwise
    monkeypatch.setattr(F, "layer_norm", lambda *args, **kwargs: seen.append(args) or normal(*args, **kwargs))
    c = net.condition(t, conditions)
    net.head(net.body(net.embed(x), c, conditions), c, x.shape[2:])
    assert not seen


@pytest.mark.parametrize("turned", [False, True])
def test_queries_and_keys_are_normed_in_each_head_before_they_are_turned(turned):
    attention = SelfAttention(16, 2, parts=Parts(qk_norm=True))
    assert (attention.q_norm.scale == 1).all()
    attention.q_norm.scale.data.normal_()
    attention.k_norm.scale.data.normal_()
    x, table = torch.randn(2, 5, 16), rotary_positions((Axis(5), Axis(1)), 8)
    q, k, v = attention.qkv(x).view(2, 5, 3, 2, 8).unbind(2)
    q, k = (
        part / (part.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.scale
        for part, module in ((q, attention.q_norm), (k, attention.k_norm))
    )
    if turned:
        q, k = rotate(q, table), rotate(k, table)
    weights = torch.einsum("blhd,bmhd->bhlm", q, k).div(8**0.5).softmax(-1)
    expected = attention.proj(torch.einsum("bhlm,bmhd->blhd", weights, v).flatten(2))
    found = attention(x, Arrangement(rotary=table if turned else None))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_size_of_queries_does_not_matter_where_they_are_normed():
    attention, x = SelfAttention(16, 2, parts=Parts(qk_norm=True)), torch.randn(2, 5, 16)
    before = attention(x)
    attention.qkv.weight.data[:32] *= 50
    torch.testing.assert_close(attention(x), before, rtol=1e-4, atol=1e-5)


def test_the_gated_mlp():
    mlp, x = GatedMlp(12, 4), torch.randn(3, 12)
    assert mlp.out.in_features == 32
    hidden = x @ mlp.into.weight.T + torch.randn(64).mul(0.1).copy_(mlp.into.bias)
    gate, value = hidden[:, :32], hidden[:, 32:]
    expected = (gate * gate.sigmoid() * value) @ mlp.out.weight.T + mlp.out.bias
    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize("width", [384, 768, 1024, 1152])
def test_the_gated_mlp_has_as_many_parameters(width):
    with torch.device("meta"):
        gated, plain = GatedMlp(width, 4), Mlp(width, 4)
    counts = [sum(p.numel() for p in mlp.parameters()) for mlp in (gated, plain)]
    assert counts[0] == pytest.approx(counts[1], rel=2e-3)
    assert gated.out.in_features % 8 == 0


def test_the_convolved_mlp():
    """On an image's grid, and on the frames of a clip; tokens behind them are not convolved."""
    mlp = ConvolvedMlp(6, 2)
    x = torch.randn(2, 12, 6)
    torch.testing.assert_close(
        mlp(x, Arrangement(grid=(1, 3, 4))), Mlp.forward(plain_of(mlp), x), rtol=0, atol=0
    )
    mlp.around.weight.data.normal_()
    mlp.around.bias.data.normal_()
    hidden = mlp[1](mlp[0](x))
    maps = hidden.mT.reshape(2, 12, 3, 4)
    convolved = F.conv2d(maps, mlp.around.weight, mlp.around.bias, padding=1, groups=12).flatten(2).mT
    expected = mlp[2](hidden + convolved)
    torch.testing.assert_close(mlp(x, Arrangement(grid=(1, 3, 4))), expected, rtol=1e-4, atol=1e-5)
    clip = torch.cat([x[:1], x[1:]], dim=1)  # two frames in one sequence
    further = torch.randn(1, 2, 6)
    found = mlp(torch.cat([clip, further], 1)[:, None], Arrangement(grid=(2, 3, 4)))[:, 0]
    torch.testing.assert_close(found[:, :24].view(2, 12, 6), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, 24:], plain_of(mlp)(further), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="none can be left out"):
        mlp(x)


def plain_of(mlp):
    plain = Mlp(6, 2)
    plain.load_state_dict({name: value for name, value in mlp.state_dict().items() if "around" not in name})
    return plain


def test_a_grid_is_row_major_and_ends_before_other_tokens():
    h = torch.arange(14.0).view(1, 1, 14, 1)
    found = on_grid(lambda m: m.roll(1, 2), h, (2, 2, 3))  # along rows of frames
    assert found.flatten().tolist() == [2, 0, 1, 5, 3, 4, 8, 6, 7, 11, 9, 10, 0, 0]


def test_values_are_mixed_with_the_first_ones():
    first, later = (SelfAttention(16, 2, parts=Parts(values=values)) for values in ("first", "mixed"))
    at, x = Arrangement(first=FirstValues()), torch.randn(2, 5, 16)
    y = first(x, at)
    torch.testing.assert_close(at.first.values, first.qkv(x)[..., 32:])
    assert later.mix.tolist() == [0.5, 0.5]
    later.mix.data = torch.tensor([0.3, 2.0])
    plain = SelfAttention(16, 2)
    plain.load_state_dict(later.state_dict(), strict=False)
    q, k, v = plain.qkv(y).view(2, 5, 3, 2, 8).unbind(2)
    v = 0.3 * v + 2 * at.first.values.view(2, 5, 2, 8)
    weights = torch.einsum("blhd,bmhd->bhlm", q, k).div(8**0.5).softmax(-1)
    expected = plain.proj(torch.einsum("bhlm,bmhd->blhd", weights, v).flatten(2))
    torch.testing.assert_close(later(y, at), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"tubelet": 1}, {"tubelet": 1, "attention": "factorised"}], ids=str)
def test_without_a_share_of_the_first_values_blocks_are_plain(fields):
    net, plain = made(value_residual=True, **fields), made(**fields)
    mixes = [net.blocks[k].attention.mix for k in range(4)]
    kinds = len(net.config.over)
    assert [mix is None for mix in mixes] == [k < kinds for k in range(4)]
    plain.load_state_dict(net.state_dict(), strict=False)
    x, t, cond = inputs(net)
    assert not torch.allclose(net(x, t, cond), plain(x, t, cond), rtol=1e-2, atol=1e-2)
    for mix in mixes[kinds:]:
        mix.data = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(net(x, t, cond), plain(x, t, cond), rtol=0, atol=0)


def test_first_values_are_of_blocks_of_the_same_kind():
    """Of a clip's factorised attention the first block over space and the first over time; as its tokens."""
    net, found = made(value_residual=True, tubelet=1, attention="factorised"), {}
    net(*inputs(net), around=lambda k, run, h, at: found.setdefault(k, at.among.first) and run(h, at))
    assert found[0] is found[2]
    assert found[1] is found[3]
    assert found[0] is not found[1]
    assert found[0].values.shape == found[1].values.shape == (2, 3, 12, 16)


def test_values_must_be_there_for_all_tokens():
    net = made(value_residual=True)
    x, t, cond = inputs(net)
    with pytest.raises(InputError, match="the first block has not run on all tokens"):
        net(x, t, cond, around=lambda k, run, h, at: run(h, at) if k else h)
    with pytest.raises(InputError, match="the first block has not run on all tokens"):
        net(x, t, cond, around=tread(torch.rand(2, 12), 4, rate=0.5, first=0, last=1))


def test_the_stem_adds_features_to_the_state():
    """Of each pixel's surroundings, of the frames of a clip one by one."""
    stem, x = ConvolutionalStem(2), torch.randn(2, 2, 3, 8, 6)
    found = stem(x)
    assert found.shape == (2, 34, 3, 8, 6)
    assert torch.equal(found[:, :2], x)
    for frame in range(3):
        torch.testing.assert_close(found[:, :, frame], stem(x[:, :, frame]))
    h = F.silu(F.conv2d(x[:, :, 0], stem.first.weight, stem.first.bias, padding=1))
    h = F.silu(F.conv2d(h, stem.second.weight, stem.second.bias, padding=1))
    torch.testing.assert_close(found[:, 2:, 0], h)


@pytest.mark.parametrize("attention", ["joint", "factorised"])
def test_registers_come_last_and_go(attention):
    net = made(registers=3, tubelet=1, attention=attention)
    x, t, cond = inputs(net)
    seen = []
    net(x, t, cond, around=lambda k, run, h, at: seen.append((h, at.own)) or run(h, at))
    h, own = seen[0]
    assert h.shape == ((2, 1, 39, 16) if attention == "joint" else (2, 3, 15, 16))
    assert own == h.shape[2] - 3
    assert torch.equal(h[..., own:, :], net.registers.expand(2, h.shape[1], -1, -1))
    out = net(x, t, cond)
    assert out.shape == x.shape
    net.registers.data.normal_()
    assert not torch.allclose(net(x, t, cond), out, rtol=1e-2, atol=1e-2)


# --- all of them together --------------------------------------------------------------------------

WAYS = [
    {},
    {"text": "cross_attention", "text_pooled": True, "text_dim": DIM},
    {"text": "in_context", "text_dim": DIM},
]
SHAPES = [{}, {"tubelet": 1}, {"tubelet": 1, "attention": "factorised"}]


@pytest.mark.parametrize(
    ("conditioning", "number"),
    [(name, number) for name in CONDITIONINGS for number in range(len(WAYS) * len(SHAPES))],
)
def test_contract(conditioning, number):
    """Shapes, finite gradients of every parameter, the same ones of blocks computed again, rows that are independent, images as
    clips of one frame, bf16."""
    way, shape = [*product(WAYS, SHAPES)][number]
    positions = ("sincos", "rotary")[number % 2]
    net = made(conditioning=conditioning, positions=positions, **TOGETHER[number // 2 % 2], **way, **shape)
    x, t, cond = inputs(net)
    found = []
    for around in (None, checkpointing(1)):
        net.zero_grad()
        out = net(x, t, cond, around=around)
        out.square().mean().backward()
        found.append({name: p.grad for name, p in net.named_parameters() if "null" not in name})
    assert out.shape == x.shape
    for name, gradient in found[0].items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    with torch.no_grad():
        one = net(x[1:], t[1:], {key: value[1:] for key, value in cond.items()})
        torch.testing.assert_close(one, out[1:], rtol=1e-4, atol=1e-4)
        if shape:
            torch.testing.assert_close(net(x[:, :, 0], t, cond), net(x[:, :, :1], t, cond)[:, :, 0])
        with torch.autocast("cpu", torch.bfloat16):
            assert (net(x, t, cond) - out).norm() < 0.05 * out.norm()


@pytest.mark.parametrize("fields", TOGETHER, ids=("gated", "convolved"))
def test_a_network_begins_by_predicting_zero_and_learns_everything(fields):
    net = build(lambda: backbone("DiT", **SMALL | fields), 0, "it")
    assert (net.blocks[1].attention.mix == 0.5).all()
    assert net.registers.detach().std() == pytest.approx(0.02, rel=0.3)
    x, t, cond = inputs(net)
    assert net(x, t, cond).abs().max() == 0
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    for _ in range(4):
        optimizer.zero_grad()
        (net(x, t, cond) - 1).square().mean().backward()
        optimizer.step()
    assert {name for name, p in net.named_parameters() if p.grad.abs().max() > 0} == {
        name for name, _ in net.named_parameters()
    }


def test_convolutions_begin_as_the_plain_network():
    convolved, plain = (
        build(lambda mlp=mlp: backbone("DiT", mlp=mlp, **SMALL), 0, "it") for mlp in ("depthwise", "gelu")
    )
    names = plain.state_dict()
    assert all(torch.equal(convolved.state_dict()[name], value) for name, value in names.items())
    for net in (convolved, plain):
        torch.manual_seed(3)
        for name in names:
            net.get_parameter(name).data.normal_(0, 0.2)
    assert torch.equal(convolved(*inputs(convolved)), plain(*inputs(plain)))


def test_packed_rows_are_one_by_one():
    net = made(**ALONE)
    states = [torch.randn(2, *size) for size in ((8, 6), (4, 4), (2, 8))]
    t, label = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
    found = net.packed(states, t, {"label": label})
    for k, state in enumerate(states):
        alone = net(state[None], t[k : k + 1], {"label": label[k : k + 1]})[0]
        torch.testing.assert_close(found[k], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", TOGETHER, ids=("gated", "convolved"))
def test_multiply_adds_and_parameters(fields):
    """In closed form: width D, N blocks, T tokens and R registers, 2 channels, 8 × 8 pixels."""
    d, n, r, t, hidden = 48, 4, 3, 16, 192
    net = backbone("DiT", **SMALL | fields | {"width": d})
    gated = fields["mlp"] == "swiglu"
    mlp, weights = (
        (3 * d * 128, 3 * d * 128 + 256 + d) if gated else (2 * d * hidden, 2 * d * hidden + 11 * hidden + d)
    )
    cost = count_cost(net, (2, 8, 8), labelled=True)
    stem, patch = 9 * (2 * 32 + 32 * 32), 4 * (2 + 32) * d
    assert cost.macs == (
        n * ((t + r) * (4 * d**2 + mlp) + 2 * (t + r) ** 2 * d + 6 * d**2 + (0 if gated else t * 9 * hidden))
        + 64 * stem + t * patch + 256 * d + d**2 + 2 * d**2 + t * d * 8
    )  # fmt: skip
    assert cost.params == (
        n * (4 * d**2 + 4 * d + weights + 6 * d * (d + 1) + 2 * 24) + 2 * (n - 1) + r * d
        + stem + 64 + patch + d + 257 * d + d * (d + 1) + 4 * d + 2 * d * (d + 1) + 8 * (d + 1)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("backbone", "others", "message"),
    [
        (
            {"mlp": "depthwise"},
            {"train": {"routing": "tread"}},
            "mlp depthwise needs all tokens of a grid; give",
        ),
        (
            {"value_residual": True},
            {"train": {"routing": "tread:first=0,last=1"}},
            "tokens out of block 0, whose values .*; let it begin at block 1 or later",
        ),
        (
            {"mlp": "depthwise"},
            {"train": {"packed": True, "tokens": 512}},
            "mlp depthwise takes no packed rows; give",
        ),
        ({"registers": -1}, {}, "registers"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(backbone, others, message):
    with pytest.raises(InputError, match=message) as caught:
        recipe("digits").replace(backbone=backbone, **others)
    assert "\n" not in str(caught.value)


def test_registers_have_no_time_of_a_frame():
    clips = recipe("moving-digits")
    with pytest.raises(InputError, match=r"registers 2 has one time per clip; give `backbone.registers` 0"):
        clips.replace(backbone={"registers": 2}, transport={"known_frames": 0.5})
    with pytest.raises(
        InputError, match=r"leaves registers without one; give one time per image or `backbone.registers` 0"
    ):
        made(registers=2)(torch.randn(2, 2, 8, 6), torch.rand(2, 12), {"label": torch.tensor([0, 1])})


def test_a_training_with_all_of_them_goes_on_and_samples(tmp_path):
    """Stopped after half, with a routing and blocks computed again, and forecast while sampling."""
    whole = recipe("digits").replace(
        backbone={"width": 24, "depth": 4, "heads": 2, **ALONE},
        train=FOUR_STEPS | {"routing": "tread:rate=0.5,first=1,last=2", "checkpoint_blocks": 1},
    )
    train(whole, tmp_path / "whole", device=CPU, progress=False)
    train(whole.replace(train={"images": 16}), tmp_path / "half", device=CPU, progress=False)
    train(whole, tmp_path / "half", device=CPU, progress=False)
    one, other = (load(tmp_path / name, CPU) for name in ("whole", "half"))
    for name, value in one.backbone.state_dict().items():
        assert torch.equal(value, other.backbone.state_dict()[name]), name
    how = {"seeds": [0, 1], "steps": 4, "numbers": True}
    exact = one.generate({"label": [3, 4]}, **how)
    assert torch.equal(one.generate({"label": [3, 4]}, cache="taylor_seer:interval=1", **how), exact)
    assert one.generate({"label": [3, 4]}, cache="taylor_seer", **how).isfinite().all()


def test_the_compiler_gets_two_graphs_for_any_number_of_blocks(monkeypatch):
    """One for the first block, one for all others; for any number of images."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiler = torch.compile
    monkeypatch.setattr(
        "torch.compile", lambda *args, **kwargs: compiler(*args, **kwargs | {"backend": count})
    )
    net, plain = made(**ALONE, depth=6), made(**ALONE, depth=6)
    compile_blocks(net)
    x, t, cond = inputs(net)
    try:
        torch.testing.assert_close(net(x, t, cond), plain(x, t, cond))
        assert len(graphs) == 2
        for rows in (2, 3, 5):
            more = (
                torch.randn(rows, 2, 8, 6),
                torch.rand(rows),
                {"label": torch.zeros(rows, dtype=torch.long)},
            )
            torch.testing.assert_close(net(*more), plain(*more))
        assert len(graphs) <= 4
    finally:
        torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("fields", TOGETHER, ids=("gated", "convolved"))
def test_compiled_blocks_have_the_same_gradients(fields):
    """The first block's values leave it as it runs; computed again, too."""
    torch._dynamo.reset()
    plain, compiled = made(**fields), made(**fields)
    compile_blocks(compiled)
    for around in (None, checkpointing(1)):
        found = []
        for net in (plain, compiled):
            net.zero_grad()
            out = net(*inputs(net), around=around)
            out.square().mean().backward()
            found.append((out, *(p.grad for p in net.parameters())))
        for expected, value in zip(*found, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


def test_old_configurations_are_plain():
    config = DiTConfig()
    assert config.ingredients == {}
    assert {config.parts(k) for k in range(config.depth)} == {Parts()}
