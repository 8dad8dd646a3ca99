"""Clips as states of several parts: a noise level for each frame, known frames, times that depend on the size."""

import math

import pytest
import torch

import ditkit
from ditkit.errors import InputError
from ditkit.layout import Frames, Layout, layout_of
from ditkit.sampling import SAMPLERS, Known, with_known
from ditkit.sampling.config import SamplingConfig

LAYOUT = Frames.of(2, 5, 3, 4)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_clips_parts_are_its_frames():
    x, times = normal(3, *LAYOUT.shape), uniform(3, 5)
    assert isinstance(layout_of(2, 5, 3, 4), Frames)
    assert type(layout_of(2, 3, 4)) is Layout
    expected = torch.stack([x[:, :, f].mean((1, 2, 3)) for f in range(5)], 1)
    torch.testing.assert_close(LAYOUT.mean(x), expected)
    spread = LAYOUT.expand(times).expand_as(x)
    assert all(spread[b, 1, f, 2, 3] == times[b, f] for b in range(3) for f in range(5))
    assert LAYOUT.expand(times[:, 0]).expand_as(x)[1].eq(times[1, 0]).all()


def test_a_clips_loss_is_the_mean_over_all_of_it():
    tr = ditkit.transport("linear")
    x0, eps, out, t = (normal(3, *LAYOUT.shape, seed=k) for k in range(3)), None, None, uniform(3)
    x0, eps, out = x0
    found = tr.losses(lambda *_: out, x0, {}, t=t, eps=eps, layout=LAYOUT)["loss"]
    torch.testing.assert_close(found, (out - (eps - x0)).square().flatten(1).mean(1))


def test_the_share_of_clips_with_known_frames_and_which():
    tr = ditkit.transport("linear", known_frames=0.6)
    n = 4000
    t, v = 0.1 + 0.8 * uniform(n), uniform(n, 3, seed=1)
    times, weights = tr.known_parts(t, v, LAYOUT)
    kept = times == 0
    assert kept.any(1).double().mean() == pytest.approx(0.6, abs=0.03)
    assert not kept.all(1).any()
    torch.testing.assert_close(times[~kept], t[:, None].expand(-1, 5)[~kept])
    assert weights[kept].eq(0).all()
    torch.testing.assert_close(weights.sum(1), torch.full((n,), 5.0, dtype=torch.float64))
    which = {tuple(row) for row in kept.int().tolist()}
    first = {(1, 0, 0, 0, 0), (1, 1, 0, 0, 0), (1, 1, 1, 0, 0), (1, 1, 1, 1, 0)}
    both = {(1, 0, 0, 0, 1), (1, 1, 0, 1, 1)}
    assert which == first | both | {(0, 0, 0, 0, 0)}


@pytest.mark.parametrize(
    ("layout", "share"), [(Frames.of(1, 1, 4, 4), 1.0), (LAYOUT, 0.0), (layout_of(1, 4, 4), 1.0)]
)
def test_no_frames_are_known_of_images_or_by_default(layout, share):
    t = uniform(3)
    assert ditkit.transport("linear", known_frames=share).known_parts(t, uniform(3, 3), layout) == (t, None)


def test_two_frames_cannot_be_known_at_both_ends():
    times, _ = ditkit.transport("linear", known_frames=1.0).known_parts(
        uniform(50) + 0.1, uniform(50, 3), Frames.of(1, 2, 4, 4)
    )
    assert (times == 0).int().tolist() == [[1, 0]] * 50


def test_learned_frames_are_trained_beside_clean_ones():
    tr = ditkit.transport("linear", known_frames=1.0)
    x0, eps, out = (normal(4, *LAYOUT.shape, seed=k) for k in range(3))
    times, weights = tr.known_parts(uniform(4) + 0.01, uniform(4, 3), LAYOUT)
    seen = []
    found = tr.losses(
        lambda x, t, c: seen.append((x, t)) or out, x0, {}, t=times, eps=eps, layout=LAYOUT, weights=weights
    )
    ((x_t, own),) = seen
    assert own.equal(times)
    for b in range(4):
        clean = times[b] == 0
        assert x_t[b][:, clean].equal(x0[b][:, clean])
        learned = (out - (eps - x0))[b][:, ~clean].square().mean()
        torch.testing.assert_close(found["loss"][b], learned)


def test_known_frames_are_kept_and_the_rest_is_sampled_from_them():
    """Data of one number in all frames: a denoiser that knows it reads it off the clean ones."""
    tr = ditkit.transport("linear", predict="data")
    layout = Frames.of(1, 4, 2, 2)

    def net(x, t, cond):
        clean = (t == 0).to(x)
        assert t.shape == (3, 4)
        assert clean[:, 0].all()
        assert not clean[:, 1:].any()
        return x[:, :, :1].expand_as(x)

    number = torch.tensor([-0.5, 0.2, 0.9], dtype=torch.float64)
    state = number.view(3, 1, 1, 1, 1).expand(3, *layout.shape)
    known = Known([True, False, False, False], state.__getitem__)
    denoise = with_known(
        tr.denoiser(net, layout), known.state(slice(None)), known.parts, normal(3, *layout.shape)
    )
    grid = torch.linspace(1, 1e-3, 6, dtype=torch.float64)
    made = known.into(
        SAMPLERS["heun"].run(denoise, normal(3, *layout.shape, seed=1), grid, {}), state, layout
    )
    assert made[:, :, 0].equal(state[:, :, 0])
    torch.testing.assert_close(made, state.contiguous(), atol=1e-2, rtol=0)  # the last time is 1e-3


def test_larger_states_are_noisier():
    """Signal-to-noise, by averaging as many positions, is what it is at the base size."""
    tr = ditkit.transport("linear", size_shift=16.0)
    base, large = layout_of(3, 4, 4), Frames.of(3, 4, 4, 4)
    u = uniform(100).clamp(1e-3)
    t, shifted = tr.times(u, base), tr.times(u, large)
    torch.testing.assert_close(t, u)
    torch.testing.assert_close(shifted / (1 - shifted), math.sqrt(4) * t / (1 - t))
    grid = SamplingConfig(sampler="heun", steps=4).times(tr, large)
    plain = SamplingConfig(sampler="heun", steps=4).times(tr, base)
    torch.testing.assert_close(grid, 2 * plain / (1 + plain))
    assert grid[0] == 1
    assert grid[-1] == 0


def test_choices_that_do_not_go_together():
    with pytest.raises(InputError, match=r"size_shift 16.* is for transport.path linear, not vp"):
        ditkit.transport("vp", predict="noise", size_shift=16.0)
