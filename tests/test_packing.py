"""Several images in one row of tokens: as if each were alone."""

import itertools

import pytest
import torch

from ditkit.backbones import backbone
from ditkit.errors import InputError
from ditkit.nn.packing import owners, packed_rows, runs, same_image, stacks, unpacked

SIZES = [(4, 6), (8, 8), (2, 2), (6, 4), (4, 4)]
ROWS = [[3, 0, 4], [1], [2]]  # lengths 6 + 6 + 4, 16, 1: the last is nearly all padding
DIM = 8


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
    cond = {"label": torch.arange(len(sizes)) % 5, "text_pooled": normal(len(sizes), DIM, seed=9)}
    return states, torch.linspace(0.1, 0.9, len(sizes)), cond


def one_by_one(net, states, t, cond):
    return [
        net(x[None], t[k : k + 1], {key: value[k : k + 1] for key, value in cond.items()})[0]
        for k, x in enumerate(states)
    ]


def same(net, states, t, cond, rows):
    """Outputs and gradients of the parameters, both ways, to 1e-5."""
    found = []
    for outs in (net.packed(states, t, cond, rows), one_by_one(net, states, t, cond)):
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
    ],
    ids=str,
)
def test_packed_rows_are_one_by_one(fields):
    same(network(**fields), *inputs(), ROWS)


@pytest.mark.parametrize("rows", [[[0, 1, 2, 3, 4]], [[4], [3], [2], [1], [0]], [[0, 1], [2, 3, 4]]], ids=str)
@torch.no_grad()
def test_which_row_an_image_is_in_does_not_matter(rows):
    net, arguments = network(), inputs()
    for ours, theirs in zip(net.packed(*arguments, rows), one_by_one(net, *arguments), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_clips_and_images_share_rows(positions):
    """Of any length, an image among them."""
    net = network(tubelet=1, heads=1, positions=positions)
    same(net, *inputs([(3, 4, 4), (2, 2, 6), (4, 4), (1, 4, 2)]), [[1, 0], [3, 2]])


def test_images_do_not_see_each_other():
    net, (states, t, cond) = network(), inputs()
    leaves = [x.requires_grad_() for x in states]
    for k, out in enumerate(net.packed(leaves, t, cond, ROWS)):
        gradients = torch.autograd.grad(out.square().sum(), leaves, retain_graph=True)
        assert [bool(g.abs().max() > 0) for g in gradients] == [j == k for j in range(len(states))]


@torch.no_grad()
def test_modulations_are_made_once_an_image():
    net, seen = network(), []
    for module in (net.blocks[0].modulation, net.final.modulation):
        module.linear.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    net.packed(*inputs(), ROWS)
    assert seen == [(5, 16), (5, 16)]


def test_a_learned_variance_is_packed_too():
    net, (states, t, cond) = network(learned_variance=True), inputs()
    assert [out.shape for out in net.packed(states, t, cond, ROWS)] == [(2, *size) for size in SIZES]


def test_images_of_one_size_that_follow_each_other_are_computed_at_once():
    net, sizes = network(), [(4, 6), (4, 6), (6, 4), (4, 6), (8, 8)]
    states, t, cond = inputs(sizes)
    assert [len(stack) for stack in stacks(states)] == [2, 1, 1, 1]
    assert torch.cat([stack.flatten() for stack in stacks(states)]).equal(
        torch.cat([state.flatten() for state in states])
    )
    same(net, states, t, {"label": cond["label"]}, [[4], [0, 1, 3], [2]])


def test_rows_there_and_back():
    parts = [torch.arange(n)[:, None] + 10 * k for k, n in enumerate((2, 2, 1))]
    x = packed_rows(parts, [[2, 0], [1]], padding=-7)
    assert x[..., 0].tolist() == [[20, 0, 1], [10, 11, -7]]
    assert all(a.equal(b) for a, b in zip(unpacked(x, [2, 2, 1], [[2, 0], [1]]), parts, strict=True))
    owner = owners([2, 2, 1], [[2, 0], [1]], torch.device("cpu"))
    assert owner.tolist() == [[2, 0, 0], [1, 1, -1]]
    assert same_image(owner)[1].tolist() == [[True, True, False], [True, True, False], [False, False, True]]


@pytest.mark.parametrize(
    "rows", [[[0, 1], [2, 3]], [[0, 1, 2, 3, 4, 5]], [[0, 1, 2, 3, 4, 4]], [[0, 1, 2, 3, 4], []]]
)
def test_errors_of_rows(rows):
    with pytest.raises(InputError, match="of 5 images: give each image, 0 to 4, one place"):
        network().packed(*inputs(), rows)


@pytest.mark.parametrize(
    "fields",
    [
        {"conditioning": "in_context"},
        {"conditioning": "cross_attention"},
        {"tubelet": 1, "attention": "factorised"},
        {"text": "cross_attention", "text_dim": DIM},
        {"text": "in_context", "text_dim": DIM},
        {"registers": 2},
        {"mlp": "depthwise"},
    ],
    ids=str,
)
def test_errors_of_networks_whose_tokens_would_meet(fields):
    with pytest.raises(
        InputError,
        match=r"takes no packed rows; give `backbone\.(attention|conditioning|text|registers|mlp)` ",
    ):
        network(**fields).packed(*inputs(), ROWS)


def test_errors_of_times_and_sizes():
    states, t, cond = inputs()
    with pytest.raises(InputError, match=r"t of shape \(5, 4\) for 5 packed states"):
        network().packed(states, t[:, None].expand(-1, 4), cond, ROWS)
    with pytest.raises(InputError, match="3x4 is not divisible into patches of 2"):
        network().packed([normal(1, 3, 4)], t[:1], cond, [[0]])


def test_runs_say_what_the_mask_says():
    lengths = [6, 16, 1, 6, 4]
    device = torch.device("cpu")
    where = runs(lengths, ROWS, device)
    assert where.dtype == torch.int32
    owner = owners(lengths, ROWS, device)
    assert where.tolist() == [0, 6, 12, 16, 32, 33, 48]
    number = torch.bucketize(torch.arange(owner.numel()), where, right=True).view(owner.shape)
    assert torch.equal(same_image(number), same_image(owner))


@pytest.mark.parametrize("fields", [{}, {"positions": "rotary"}], ids=str)
def test_a_kernel_that_reads_runs_gives_the_same(monkeypatch, fields):
    """Flash attention of a GPU, for which another stands that computes every run by itself."""

    def by_run(q, k, v, begins, begins_k, longest, longest_k, *, scale=None):
        assert begins is begins_k
        assert longest == longest_k >= int(begins.diff().max())
        parts = []
        for start, end in itertools.pairwise(begins.tolist()):
            heads = [part[start:end].transpose(0, 1) for part in (q, k, v)]  # (H, n, d)
            parts.append(
                torch.nn.functional.scaled_dot_product_attention(*heads, scale=scale).transpose(0, 1)
            )
        calls.append(len(parts))
        return torch.cat(parts)

    calls = []
    monkeypatch.setattr("ditkit.kernels.attention.varlen_attn", by_run)
    monkeypatch.setattr("ditkit.kernels.attention.HALVES", (torch.float32,))
    monkeypatch.setattr("ditkit.backbones.dit.reads_runs", lambda device: True)
    same(network(**fields), *inputs(), ROWS)
    assert calls == [6, 6]  # two blocks, packed; an image alone needs no runs
