"""Several images in one sequence of tokens: as if each were alone."""

import itertools
from functools import partial

import pytest
import torch

from ditkit.backbones import backbone
from ditkit.errors import InputError
from ditkit.kernels.attention import attend, in_runs
from ditkit.nn.packing import owners, runs, stacks

SIZES = [(4, 6), (8, 8), (2, 2), (6, 4), (4, 4)]
DIM, WORDS = 8, 4


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(**fields):
    """A tiny DiT none of whose weights are zero."""
    small = {"width": 16, "depth": 2, "heads": 2, "patch": 2, "classes": 5, "channels": 1}
    net = backbone("DiT", **(small | fields))
    stream = torch.Generator().manual_seed(1)
    for value in net.parameters():
        value.data = 0.2 * torch.randn(value.shape, generator=stream)
    return net


def inputs(sizes=SIZES):
    states = [normal(1, *size, seed=k) for k, size in enumerate(sizes)]
    cond = {
        "label": torch.arange(len(sizes)) % 5,
        "text": normal(len(sizes), WORDS, DIM, seed=8),
        "text_mask": torch.arange(WORDS) <= torch.arange(len(sizes))[:, None] % WORDS,
        "text_pooled": normal(len(sizes), DIM, seed=9),
    }
    return states, torch.linspace(0.1, 0.9, len(sizes)), cond


def one_by_one(net, states, t, cond):
    return [
        net(x[None], t[k : k + 1], {key: value[k : k + 1] for key, value in cond.items()})[0]
        for k, x in enumerate(states)
    ]


def same(net, states, t, cond):
    """Outputs and gradients of the parameters, both ways, to 1e-5."""
    found = []
    for outs in (net.packed(states, t, cond), one_by_one(net, states, t, cond)):
        net.zero_grad()
        sum((out * normal(*out.shape, seed=7)).sum() for out in outs).backward()
        gradients = [value.grad.clone() for value in net.parameters() if value.grad is not None]
        assert len(gradients) > 20
        found.append((outs, gradients))
    for packed, alone in zip(*found, strict=True):
        for ours, theirs in zip(packed, alone, strict=True):
            assert ours.isfinite().all()
            torch.testing.assert_close(
                ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, theirs.abs().max().item())
            )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"conditioning": "adaln"},
        {"positions": "rotary"},
        {"text_pooled": True, "text_dim": DIM},
        {"positions": "rotary", "grid": (2, 2), "extrapolation": "ntk", "size_embedding": True},
        {"grid": (3, 2), "extrapolation": "interpolated"},
        {"text": "cross_attention", "text_dim": DIM},
        {
            "text": "cross_attention",
            "text_pooled": True,
            "text_dim": DIM,
            "positions": "rotary",
            "norm": "rms",
        },
        {"text": "in_context", "text_dim": DIM},
        {"text": "in_context", "text_dim": DIM, "positions": "rotary", "registers": 2},
        {"registers": 3, "value_residual": True},
    ],
    ids=str,
)
def test_packed_rows_are_one_by_one(fields):
    same(network(**fields), *inputs())


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_clips_and_images_are_packed_together(positions):
    """Of any length, an image among them."""
    net = network(tubelet=1, heads=1, positions=positions)
    same(net, *inputs([(3, 4, 4), (2, 2, 6), (4, 4), (1, 4, 2)]))


@pytest.mark.parametrize("text", ["none", "cross_attention", "in_context"])
def test_images_do_not_see_each_other(text):
    """Nor each other's texts, nor words that are none."""
    net, (states, t, cond) = network(text=text, text_dim=DIM * (text != "none")), inputs()
    leaves = [x.requires_grad_() for x in states]
    words = cond["text"].requires_grad_()
    for k, out in enumerate(net.packed(leaves, t, cond)):
        gradients = torch.autograd.grad(
            out.square().sum(), [*leaves, words], retain_graph=True, allow_unused=text == "none"
        )
        assert [bool(g.abs().max() > 0) for g in gradients[:-1]] == [j == k for j in range(len(states))]
        if text != "none":
            read = gradients[-1].abs().amax(2) > 0  # (N, M)
            assert read[k].equal(cond["text_mask"][k])
            assert read.sum() == read[k].sum()


@torch.no_grad()
def test_modulations_are_made_once_an_image():
    net, seen = network(), []
    for module in (net.blocks[0].modulation, net.final.modulation):
        module.linear.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    net.packed(*inputs())
    assert seen == [(5, 16), (5, 16)]


def test_a_learned_variance_is_packed_too():
    net, (states, t, cond) = network(learned_variance=True), inputs()
    assert [out.shape for out in net.packed(states, t, cond)] == [(2, *size) for size in SIZES]


def test_images_of_one_size_that_follow_each_other_are_computed_at_once():
    net, sizes = network(), [(4, 6), (4, 6), (6, 4), (4, 6), (8, 8)]
    states, t, cond = inputs(sizes)
    assert [len(stack) for stack in stacks(states)] == [2, 1, 1, 1]
    assert torch.cat([stack.flatten() for stack in stacks(states)]).equal(
        torch.cat([state.flatten() for state in states])
    )
    same(net, states, t, {"label": cond["label"]})


@pytest.mark.parametrize(
    "fields",
    [
        {"conditioning": "in_context"},
        {"conditioning": "cross_attention"},
        {"tubelet": 1, "attention": "factorised"},
        {"mlp": "depthwise"},
    ],
    ids=str,
)
def test_errors_of_networks_whose_tokens_would_meet(fields):
    with pytest.raises(
        InputError,
        match=r"takes no packed rows; give `backbone\.(attention|conditioning|mlp)` ",
    ):
        network(**fields).packed(*inputs())


def test_errors_of_times_and_sizes():
    states, t, cond = inputs()
    with pytest.raises(InputError, match=r"t of shape \(5, 4\) for 5 packed states"):
        network().packed(states, t[:, None].expand(-1, 4), cond)
    with pytest.raises(InputError, match="3x4 is not divisible into patches of 2"):
        network().packed([normal(1, 3, 4)], t[:1], cond)


def test_runs_and_owners():
    device = torch.device("cpu")
    found = runs([3, 1, 1, 2], device)
    assert found.starts.tolist() == found.there.tolist() == [0, 3, 4, 5, 7]
    assert found.starts.dtype == torch.int32
    assert owners([3, 1, 1, 2], device).tolist() == [[0, 0, 0, 1, 2, 3, 3]]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_attention_in_runs_is_attention_with_a_mask(dtype, compiled):
    """In value and gradients; runs of equal length that follow each other, and others."""
    lengths = [3, 5, 5, 1, 3]
    owner = owners(lengths, torch.device("cpu"))
    mask = owner[:, :, None] == owner[:, None]
    leaves = [normal(1, 2, sum(lengths), 8, seed=k).to(dtype).requires_grad_() for k in range(3)]
    own = runs(lengths, owner.device)
    as_operator = lambda q, k, v: in_runs(q, k, v, q.shape[-1] ** -0.5, own.starts, own.starts, None)  # noqa: E731
    by_runs = as_operator if compiled else partial(attend, runs=own)
    assert_alike(partial(attend, mask=mask), by_runs, leaves)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_to_the_runs_of_another_sequence_is_attention_with_a_mask(dtype, compiled, masked):
    lengths, others = [3, 5, 5, 1, 3], [2, 4, 4, 4, 1]
    owner, owner_k = (owners(some, torch.device("cpu")) for some in (lengths, others))
    there = torch.tensor([[1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1]]).bool() if masked else None
    mask = owner[:, :, None] == owner_k[:, None]
    mask = mask if there is None else mask & there
    leaves = [
        normal(1, 2, sum(some), 8, seed=k).to(dtype).requires_grad_()
        for k, some in enumerate((lengths, others, others))
    ]
    own, keys = (runs(some, owner.device) for some in (lengths, others))
    as_operator = lambda q, k, v: in_runs(q, k, v, q.shape[-1] ** -0.5, own.starts, keys.starts, there)  # noqa: E731
    by_runs = as_operator if compiled else partial(attend, mask=there, runs=own, keys=keys)
    assert_alike(partial(attend, mask=mask), by_runs, leaves)


def assert_alike(exact, near, leaves):
    """Two attentions, in value and gradients."""
    found = []
    for how in (exact, near):
        out = how(*leaves)
        found.append([out, *torch.autograd.grad((out * normal(*out.shape, seed=5)).sum(), leaves)])
    for value, other in zip(*found, strict=True):
        assert (other - value).norm() < {torch.bfloat16: 0.02}.get(value.dtype, 1e-6) * value.norm()


class ByRun(torch.autograd.Function):
    """Stands for flash attention of a GPU that reads runs: gradients of what is in no run are as memory was."""

    @staticmethod
    def forward(ctx, q, k, v, begins, begins_k, scale):
        ctx.save_for_backward(q, k, v, begins, begins_k)
        ctx.scale = scale
        return by_run(q, k, v, begins, begins_k, scale)

    @staticmethod
    def backward(ctx, gradient):
        q, k, v, begins, begins_k = ctx.saved_tensors
        leaves = [part.detach().requires_grad_() for part in (q, k, v)]
        with torch.enable_grad():
            out = by_run(*leaves, begins, begins_k, ctx.scale)
        found = torch.autograd.grad(out, leaves, gradient)
        for part in found[1:]:
            part[int(begins_k[-1]) :] = torch.nan
        return *found, None, None, None


def by_run(q, k, v, begins, begins_k, scale):
    parts = []
    for (start, end), (start_k, end_k) in zip(
        itertools.pairwise(begins.tolist()), itertools.pairwise(begins_k.tolist()), strict=True
    ):
        heads = [part.transpose(0, 1) for part in (q[start:end], k[start_k:end_k], v[start_k:end_k])]
        parts.append(torch.nn.functional.scaled_dot_product_attention(*heads, scale=scale).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"positions": "rotary"},
        {"text": "cross_attention", "text_dim": DIM},
        {"text": "in_context", "text_dim": DIM, "registers": 1},
    ],
    ids=str,
)
def test_a_kernel_that_reads_runs_gives_the_same(monkeypatch, fields):
    """It gets runs without the words that are masked, and those behind all runs."""

    def kernel(q, k, v, begins, begins_k, longest, longest_k, *, scale=None):
        assert longest >= int(begins.diff().max())
        assert longest_k >= int(begins_k.diff().max())
        assert begins.dtype == begins_k.dtype == torch.int32
        calls.append((len(q), int(begins_k[-1])))
        return ByRun.apply(q, k, v, begins, begins_k, scale)

    calls = []
    monkeypatch.setattr("ditkit.kernels.attention.varlen_attn", kernel)
    monkeypatch.setattr("ditkit.kernels.attention.HALVES", (torch.float32,))
    monkeypatch.setattr("ditkit.kernels.attention.reads_runs", lambda device: True)
    same(network(**fields), *inputs())
    count, words = sum(height * width // 4 for height, width in SIZES), 1 + 2 + 3 + 4 + 1
    known = {
        "none": [(count, count)],
        "cross_attention": [(count, count), (count, words)],
        "in_context": [(count + 5 * (1 + WORDS), count + 5 + words)],
    }
    assert calls == 2 * known[fields.get("text", "none")]  # two blocks, packed; an image alone needs no runs
