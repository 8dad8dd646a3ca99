"""SPRINT: dense and sparse blocks by their formulas, what training leaves out, path-drop guidance, whole trainings."""

import math
from collections import Counter

import pytest
import torch
from conftest import CPU, FOUR_STEPS
from test_tread import DITS, SEQUENCES, inputs, made, weights

from ditkit.backbones import BACKBONES, backbone, compile_blocks
from ditkit.backbones.sections.dit import SPARSE, DiTConfig
from ditkit.costs.count import count_cost
from ditkit.costs.operators import PRODUCTS
from ditkit.errors import InputError
from ditkit.first_values import build
from ditkit.nn.around import Tokens, checkpointing
from ditkit.nn.sparse import NOTHING, PATH, LeftOut, kept
from ditkit.pipeline import Pipeline, load
from ditkit.randomness import Draws
from ditkit.recipes import recipe
from ditkit.scoring.samples import sampling_facts
from ditkit.scoring.tables import away
from ditkit.training.footprint import Training
from ditkit.training.loop import train

SIZES = {"depth": 6, "sparse": 0.75}
OTHERS = {
    "first values": {"value_residual": True, "norm": "rms", "positions": "rotary"},
    "first values of clips": {"value_residual": True, "tubelet": 1, "attention": "factorised"},
    "registers": {"registers": 2, "qk_norm": True, "mlp": "swiglu"},
}
EVERY = DITS | OTHERS


def sparse(fields):
    """A tiny network with sparse blocks, all of whose parameters are random, and what to evaluate it with."""
    text = "text" in fields
    net = made("DiT-S/2", text_dim=8 * text, **SIZES | fields)
    x, cond = inputs(fields, text)
    return net, x, torch.tensor([0.2, 0.9]), cond


def by_hand(net, x, t, cond, dropped=False):
    """The output where the last two blocks work on a linear map of what the first two give, and of what those between give of it
    or the mask token."""
    conditions = net.conditions(cond, x.shape[2:])
    c = net.condition(t, conditions)
    tokens = net.embed(x)
    h, turns = net._tokens(tokens, c, conditions)

    def run(h, blocks):
        for k in blocks:
            h = net._block(k, h, turns[k % len(turns)])
        return h

    first = run(h, range(2))
    found = net.sparse.mask.expand_as(first) if dropped else run(first, range(2, 4))
    weight, bias = net.sparse.fusion.weight, net.sparse.fusion.bias
    h = run(first @ weight[:, :48].T + found @ weight[:, 48:].T + bias, range(4, 6))
    return net.head(h[..., : turns[0].own, :].reshape(tokens.shape), c, x.shape[2:])


@pytest.mark.parametrize("fields", EVERY.values(), ids=EVERY)
def test_the_whole_network_and_the_dense_one_by_hand(fields):
    net, *given = sparse(fields)
    whole, dense = by_hand(net, *given), by_hand(net, *given, dropped=True)
    torch.testing.assert_close(net(*given), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net(*given, left=PATH), dense, rtol=1e-4, atol=1e-4)
    some = LeftOut(images=torch.tensor([True, False]))
    torch.testing.assert_close(
        net(*given, left=some), torch.stack([dense[0], whole[1]]), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(whole, dense, rtol=1e-2, atol=1e-2)


def test_the_dense_network_runs_no_sparse_block():
    net, *given = sparse({})
    run = []
    net(*given, left=PATH, around=lambda k, run_, h, at: run.append(k) or run_(h, at))
    assert run == [0, 1, 4, 5]


def smallest(draws, rows, columns, share):
    """Which of the tokens of grids stay, bool like `draws` (B, F · rows · columns)."""
    stays = torch.zeros_like(draws, dtype=torch.bool)
    for image, numbers in enumerate(draws):
        for start in range(0, len(numbers), rows * columns):
            for row in range(0, rows, 2):
                for column in range(0, columns, 2):
                    square = [
                        start + r * columns + c
                        for r in range(row, min(row + 2, rows))
                        for c in range(column, min(column + 2, columns))
                    ]
                    square.sort(key=lambda place: numbers[place].item())
                    stays[image, square[: math.ceil(len(square) * (1 - share))]] = True
    return stays


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 1), (2, 3), (1, 6)])
@pytest.mark.parametrize("frames", [1, 3])
def test_of_each_square_the_smallest_stay(share, grid, frames):
    draws = torch.rand(4, frames * math.prod(grid), dtype=torch.float64)
    expected = smallest(draws, *grid, share)
    places = kept(draws, grid, share)
    assert torch.equal(places, places.sort(-1).values)
    assert torch.equal(torch.zeros_like(expected).scatter(1, places, True), expected)
    assert places.shape[1] == expected[0].sum()


def test_three_quarters_of_an_even_grid_are_left_out():
    assert kept(torch.rand(2, 64), (8, 8), 0.75).shape == (2, 16)
    assert kept(torch.zeros(2, 64), (8, 8), 0.75).shape == (
        2,
        16,
    )  # of an image of zeros that stands in for none


@pytest.mark.parametrize(
    ("name", "per_token"),
    [(n, each) for n in EVERY for each in (False, True) if not each or n not in {*SEQUENCES, "registers"}],
)
def test_tokens_left_out_are_as_if_masked(name, per_token):
    """In the sparse blocks nobody attends to them, and after these the mask token is in their places."""
    net, x, t, cond = sparse(fields := EVERY[name])
    if per_token:
        t = torch.rand(2, 3 if "tubelet" in fields else 16)
    draws = torch.rand(2, 64)

    def masked(k, run, h, at: Tokens):
        if k not in (2, 3):
            return run(h, at)
        stays = torch.ones(2, h.shape[-2], dtype=torch.bool)
        stays[:, : at.own] = smallest(draws[:, : at.own], 4, 4, 0.75)
        if at.over != "time":
            mask = stays.repeat_interleave(at.frames, 0) if at.over == "space" else stays.repeat(1, at.frames)
            known = at.among.mask
            at = at._replace(among=at.among._replace(mask=mask if known is None else mask & known))
        out = run(h, at)
        stays = stays[..., None] if h.ndim == 3 else stays[:, None, :, None]
        return torch.where(stays, out, net.sparse.mask) if k == 3 else torch.where(stays, out, h)

    found = net(x, t, cond, left=LeftOut(draws))
    torch.testing.assert_close(found, net(x, t, cond, around=masked), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, net(x, t, cond), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("fields", EVERY.values(), ids=EVERY)
def test_contract_in_training(fields):
    """Every parameter has a gradient, the same one of blocks computed again; rows are independent; bf16."""
    net, x, t, cond = sparse(fields)
    left = LeftOut(torch.rand(2, 64), torch.tensor([False, False]))
    found = []
    for around in (None, checkpointing(1)):
        net.zero_grad()
        out = net(x, t, cond, around=around, left=left)
        out.square().mean().backward()
        found.append({name: p.grad for name, p in net.named_parameters() if "null" not in name})
    for name, gradient in found[0].items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    with torch.no_grad():
        alone = LeftOut(left.tokens[1:], left.images[1:])
        one = net(x[1:], t[1:], {key: value[1:] for key, value in cond.items()}, left=alone)
        torch.testing.assert_close(one, out[1:], rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert (net(x, t, cond, left=left) - out).norm() < 0.1 * out.norm()
    net.zero_grad()  # also where no image has sparse blocks, which processes that exchange gradients need
    net(x, t, cond, left=LeftOut(left.tokens, torch.tensor([True, True]))).square().mean().backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if "null" not in name)


def test_a_network_begins_by_predicting_zero_and_learns_everything():
    net = build(lambda: backbone("DiT", width=48, heads=4, channels=2, classes=3, **SIZES), 0, "it")
    assert net.sparse.mask.detach().std() == pytest.approx(0.02, rel=0.3)
    plain = build(lambda: backbone("DiT", width=48, heads=4, channels=2, classes=3, depth=6), 0, "it")
    assert all(torch.equal(net.get_parameter(name), value) for name, value in plain.named_parameters())
    assert {name for name, _ in net.named_parameters()} - {name for name, _ in plain.named_parameters()} == {
        "sparse.mask", "sparse.fusion.weight", "sparse.fusion.bias",
    }  # fmt: skip
    x, t, cond = torch.randn(2, 2, 8, 8), torch.rand(2), {"label": torch.tensor([0, 2])}
    left = LeftOut(torch.rand(2, 16), torch.tensor([False, False]))
    assert net(x, t, cond, left=left).abs().max() == 0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        (net(x, t, cond, left=left) - 1).square().mean().backward()
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())


def test_what_training_draws():
    """A number for each token and one for each image, a tenth of which are below a tenth; without tokens that are left out none
    for these."""
    assert DiTConfig(**SIZES).streams == SPARSE
    assert DiTConfig(depth=6, sparse=0).streams == SPARSE[:1]
    assert DiTConfig(depth=6).streams == BACKBONES["UNet"].streams == ()
    drawn = Draws(0, SPARSE, {(8, 8): (1, 8, 8)}, {(8, 8): 16})(range(3000), (8, 8))
    left = made("DiT-S/2", **SIZES).in_training(drawn)["left"]
    assert left.tokens.shape == (3000, 16)
    assert left.images.float().mean() == pytest.approx(0.1, abs=0.02)
    assert (
        made("DiT-S/2", depth=6, sparse=0.0).in_training({"sparse_path": torch.rand(2)})["left"].tokens
        is None
    )
    assert made("DiT-S/2", depth=6).in_training({}) == {}


TINY = {"backbone": {"width": 24, "heads": 2, "patch": 2, **SIZES}, "train": FOUR_STEPS}


def test_it_trains_resumes_and_samples(tmp_path):
    """Stopped after half, it ends with the weights of a training that was not; micro-batches leave out the same tokens; it goes on
    with all tokens."""
    whole = recipe("digits").replace(**TINY)
    train(whole, tmp_path / "whole", device=CPU, progress=False)
    train(whole.replace(train={"images": 16}), tmp_path / "half", device=CPU, progress=False)
    train(whole, tmp_path / "half", device=CPU, progress=False)
    train(whole.replace(train={"micro_batch": 4}), tmp_path / "micro", device=CPU, progress=False)
    expected = weights(tmp_path / "whole")
    for name, value in weights(tmp_path / "half").items():
        assert torch.equal(value, expected[name]), name
    for name, value in weights(tmp_path / "micro").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)
    last = whole.replace(backbone={"sparse": 0.0})
    train(last, tmp_path / "last", device=CPU, init=tmp_path / "whole", progress=False)
    assert weights(tmp_path / "last").keys() == expected.keys()
    pipe = load(tmp_path / "last", CPU)
    how = {"seeds": [0, 1], "steps": 2, "numbers": True}
    away = [
        pipe.generate({"label": [3, 4]}, guidance=2.0, guidance_path=path, **how)
        for path in ("whole", "dense")
    ]
    assert not torch.allclose(*away)
    again = pipe.generate({"label": [4]}, guidance=2.0, guidance_path="dense", **how | {"seeds": [1]})
    torch.testing.assert_close(again, away[1][1:], rtol=1e-3, atol=1e-2)
    assert (
        pipe.generate({"label": [3, 4]}, cache="taylor_seer", guidance=2.0, guidance_path="dense", **how)
        .isfinite()
        .all()
    )


def pipeline(**backbone_fields):
    chosen = recipe("digits").replace(**TINY).replace(backbone=backbone_fields)
    torch.manual_seed(0)
    net = chosen.build_backbone().eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.normal_(0, 0.2)
    return Pipeline(chosen, net, chosen.build_codec(), CPU)


def test_path_drop_guidance_leads_away_from_the_dense_network_without_a_condition():
    pipe = pipeline()
    how = {"seeds": [0, 1], "guidance": 2.5, "guidance_path": "dense", "interval": (0.25, 0.75)}
    plan = pipe.plan({"label": [3, 4]}, **how)
    net, x = pipe.backbone, torch.randn(2, *plan.layout.shape)
    label, null = ({"label": torch.tensor(rows)} for rows in ([3, 4], [10, 10]))
    for time, on in ((0.5, True), (0.9, False)):
        t = torch.full((2,), time)
        dense = pipe.transport.denoiser(lambda x, t, cond: net(x, t, cond, left=PATH))(x, t, null)
        own = pipe.transport.denoiser(net)(x, t, label)
        expected = torch.lerp(dense.x0, own.x0, 2.5) if on else own.x0
        torch.testing.assert_close(plan.denoise(x, t, label).x0, expected, rtol=1e-4, atol=1e-4)


def test_path_drop_guidance_runs_sparse_blocks_once():
    pipe, run = pipeline(), Counter()
    for k, block in enumerate(pipe.backbone.blocks):
        block.register_forward_hook(lambda *_, k=k: run.update([k]))
    how = {"steps": 3, "sampler": "euler", "guidance": 2.0, "guidance_path": "dense"}
    pipe.generate({"label": [3]}, seeds=[0], **how)
    assert [run[k] for k in range(6)] == [6, 6, 3, 3, 6, 6]
    assert pipe.tokens(**how) == 3 * 16 * (6 + 4) / 6
    assert pipe.tokens(**how | {"guidance_path": "whole"}) == 3 * 16 * 2


def test_the_record_says_what_guidance_led_away_from():
    pipe = pipeline()
    request = pipe.plan({"label": [3]}, seeds=[0], guidance=2.0, guidance_path="dense").request
    facts, plain = (sampling_facts(pipe, r) for r in (request, request.but(guidance_path="whole")))
    assert (facts["guidance_path"], away(facts)) == ("dense", " away from its dense blocks")
    assert ("guidance_path" in plain, away(plain)) == (False, "")


def test_a_network_without_classes_can_be_guided_by_its_dense_blocks():
    pipe = pipeline(label=False)
    plain, guided = (
        pipe.generate(seeds=[0], steps=2, numbers=True, **how)
        for how in ({}, {"guidance": 2.0, "guidance_path": "dense"})
    )
    assert not torch.allclose(plain, guided)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"backbone": {"depth": 4}}, r"depth 4 has none; give `backbone\.depth` 5 or more"),
        ({"backbone": {"sparse": 0.9}}, r"sparse"),
        ({"backbone": {"sparse": 0.3}}, r"sparse"),
        ({"backbone": {"mlp": "depthwise"}}, r"sparse 0\.75 leaves some out; give `backbone\.mlp` gelu or swiglu"),
        ({"train": {"routing": "tread"}}, r"train\.routing tread, but backbone\.sparse 0\.75 has blocks that work on other tok"),
        ({"train": {"terms": ("sra",)}}, r"train\.terms sra, but backbone\.sparse 0\.75 has blocks that work on other tokens"),
        ({"train": {"packed": True, "tokens": 64}}, r"train\.packed, but backbone\.sparse 0\.75 takes no packed rows"),
        ({"backbone": {"sparse": None}, "sample": {"guidance_path": "dense"}}, r"has no sparse blocks; give `backbone\.sparse`"),
        ({"sample": {"guidance_path": "dense", "guidance_channels": 1}}, r"is not for `guidance_path` dense"),
        ({"backbone": BACKBONES["UNet"], "sample": {"guidance_path": "dense"}}, r"has no sparse blocks; take a DiT"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(fields, reason):
    with pytest.raises(InputError, match=reason) as caught:
        recipe("digits").replace(**TINY).replace(**fields)
    assert "\n" not in str(caught.value)


def test_levels_around_it_are_refused():
    with pytest.raises(InputError, match=r"leave `backbone\.inner\.sparse` out"):
        backbone("Matryoshka", inner={"kind": "DiT", **SIZES})


def test_requests_that_cannot_be_are_refused():
    pipe = pipeline()
    with pytest.raises(InputError, match="`guidance_path` dense and `weak` both"):
        pipe.generate({"label": [3]}, seeds=[0], weak=pipe, guidance=2.0, guidance_path="dense")
    with pytest.raises(
        InputError, match=r"`guidance_path` dense, but backbone\.sparse none has no sparse blocks"
    ):
        pipeline(sparse=None).generate({"label": [3]}, seeds=[0], guidance=2.0, guidance_path="dense")
    with pytest.raises(InputError, match="takes no packed rows"):
        pipe.backbone.packed([torch.randn(1, 8, 8)], torch.rand(1), {"label": torch.tensor([3])})


def test_costs_are_of_the_tokens_that_stay():
    """Multiply-adds of training steps, in closed form: what sparse blocks of width D compute for T tokens instead of T / 4, two
    operations each, forward and twice as many backward. An evaluation has all tokens."""
    d, tokens, batch = 48, 64, 3
    some, every = (
        backbone("DiT", width=d, heads=4, patch=2, channels=2, classes=3, depth=6, sparse=share)
        for share in (0.75, 0.0)
    )
    left, whole = (count_cost(net, (2, 16, 16), labelled=True) for net in (some, every))
    assert left.macs == whole.macs

    def products(cost):
        names = {kind.__name__ for kind in PRODUCTS}
        return sum(amount.size for name, amount in cost.work(batch, "fp32").items() if name in names)

    def blocks(t):
        return 2 * batch * 2 * 3 * (12 * d**2 * t + 2 * d * t**2)

    assert products(whole) - products(left) == blocks(tokens) - blocks(tokens // 4)
    assert left.memory(batch, "fp32").activations < 0.9 * whole.memory(batch, "fp32").activations
    planned = [
        Training(recipe("digits").replace(**TINY).replace(backbone={"sparse": s})).passes("written", 0)
        for s in (0.75, 0.0)
    ]
    assert planned[0].products.each < planned[1].products.each
    assert planned[0].activations(8) < planned[1].activations(8)


def test_the_compiler_gets_a_graph_for_all_blocks(monkeypatch):
    """Whatever is left out."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiler = torch.compile
    monkeypatch.setattr(
        "torch.compile", lambda *args, **kwargs: compiler(*args, **kwargs | {"backend": count})
    )
    net, x, t, cond = sparse({})
    plain = made("DiT-S/2", **SIZES)
    compile_blocks(net)
    try:
        for left in (LeftOut(torch.rand(2, 16), torch.tensor([False, True])), NOTHING, PATH):
            torch.testing.assert_close(net(x, t, cond, left=left), plain(x, t, cond, left=left))
        assert len(graphs) <= 2
    finally:
        torch._dynamo.reset()
