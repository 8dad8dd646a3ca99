"""States of several resolutions: their layout, a noise level for each, losses by level, every sampler."""

import math

import pytest
import torch
from test_samplers import f64, normal

from ditkit.codecs import IdentityConfig, PyramidCodec
from ditkit.errors import InputError
from ditkit.layout import Layout, Pyramid, layout_of, pack, unpack
from ditkit.sampling import SAMPLERS
from ditkit.sampling.config import SamplingConfig
from ditkit.transports import PREDICTIONS, transport
from ditkit.transports.paths import PATHS, Coeffs, shifted

TWO = Pyramid.of(1, 4, 4, ratios=(2, 1))  # 4 channels of 2 × 2 for the high level, 1 for the low


# --- the layout -------------------------------------------------------------------------------------


def test_levels_are_packed_highest_first():
    layout = Pyramid.of(3, 32, 16, ratios=(16, 4, 1))
    assert (layout.shape, layout.parts) == ((3 * (256 + 16 + 1), 2, 1), 3)
    sizes = [(32, 16), (8, 4), (2, 1)]
    x = normal(2, *layout.shape, seed=0)
    levels = unpack(x, layout.ratios)
    assert [tuple(level.shape) for level in levels] == [(2, 3, *size) for size in sizes]
    assert torch.equal(pack(levels, layout.ratios), x)
    assert torch.equal(levels[2], x[:, -3:])
    # The pixel in row 5, column 2 of the middle level lies in row 1, column 0 of the lowest, as its (1, 2).
    assert levels[1][1, 1, 5, 2] == x[1, 3 * 256 + 16 + 1 * 4 + 2, 1, 0]


def test_values_and_means_by_level():
    values = f64([[1.0, 2.0], [3.0, 4.0]])
    wide = TWO.expand(values)
    assert wide.shape == (2, 5, 1, 1)
    torch.testing.assert_close(TWO.mean(wide.expand(2, *TWO.shape)), values)
    assert TWO.expand(values[:, 0]).shape == (2, 1, 1, 1)
    x = normal(2, *TWO.shape, seed=1)
    levels = unpack(x, TWO.ratios)
    torch.testing.assert_close(TWO.mean(x), torch.stack([level.mean((1, 2, 3)) for level in levels], 1))


@pytest.mark.parametrize(
    ("height", "width", "ratios", "message"),
    [
        (30, 32, (4, 1), "30x32 has no levels of 4:1"),
        (32, 30, (4, 1), "32x30 has no levels of 4:1"),
        (32, 32, (4, 3, 1), "4:3:1: each must be a multiple"),
        (32, 32, (4, 2), "4:2: each must be a multiple of the next, and the last be 1"),
        (32, 32, (1, 1), "1:1: each"),
    ],
)
def test_levels_that_do_not_divide(height, width, ratios, message):
    with pytest.raises(InputError, match=message):
        Pyramid.of(3, height, width, ratios=ratios)


# --- noise by level ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "plain", "four", "four_squared", "sixteen_squared"),
    [
        (250, 0.84701, 0.580557, 0.257074, 0.021169),
        (500, 0.493844, 0.196089, 0.057475, 0.0037968),
        (750, 0.144272, 0.040444, 0.010427, 0.00065814),
    ],
)
def test_released_schedules(index, plain, four, four_squared, sixteen_squared):
    """Signal powers of the released networks' levels, of their cosine schedule."""
    t = f64(index / 1000)
    wide = Pyramid.of(3, 1024, 1024, ratios=(16, 4, 1))
    for power, ratios, expected in (
        (1, (4, 1), [four, plain]),
        (2, (16, 4, 1), [sixteen_squared, four_squared, plain]),
    ):
        tr = transport("cosine", predict="v", level_shift=power)
        layout = wide if len(ratios) == 3 else Pyramid.of(3, 256, 256, ratios=ratios)
        torch.testing.assert_close(tr.coeffs(t, layout).alpha ** 2, f64(expected), rtol=1e-4, atol=0)


def test_the_cosine_schedule_at_its_ends():
    power = PATHS["cosine"](f64([0.001, 0.999, 1.0])).alpha ** 2
    torch.testing.assert_close(power, f64([0.99995869, 2.4288e-6, 2.4288e-9]), rtol=2e-5, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_a_shift_multiplies_the_noise_for_the_signal(path):
    t = f64([0.1, 0.4, 0.7, 0.95])
    norm = PATHS[path].norm
    factor = f64([8.0, 1.0])
    c = PATHS[path](t)
    found = shifted(Coeffs(*(value[:, None] for value in c)), factor, norm)
    torch.testing.assert_close(found.sigma / found.alpha, (c.sigma / c.alpha)[:, None] * factor)
    torch.testing.assert_close(found.alpha**norm + found.sigma**norm, torch.ones_like(found.alpha))
    for name in c._fields:  # the lowest level is not shifted
        torch.testing.assert_close(getattr(found, name)[:, 1], getattr(c, name))


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_of_shifted_paths(path):
    h, factor, norm = 1e-7, f64([4.0]), PATHS[path].norm

    def at(t):
        return shifted(Coeffs(*(value[:, None] for value in PATHS[path](t))), factor, norm)

    t = f64([0.1203, 0.4507, 0.7301])  # between the knots of those that have some
    before, here, after = at(t - h), at(t), at(t + h)
    for name in ("alpha", "sigma"):
        slope = (getattr(after, name) - getattr(before, name)) / (2 * h)
        torch.testing.assert_close(getattr(here, f"d_{name}"), slope, rtol=1e-5, atol=1e-5)


def test_straight_paths_shift_as_times_do():
    t, factor = f64([0.0, 0.2, 0.5, 1.0]), 3.0
    found = transport("linear", level_shift=math.log(9, 2)).coeffs(t, TWO)  # 2^(p/2) = 3
    torch.testing.assert_close(found.sigma[:, 0], factor * t / (1 + (factor - 1) * t))
    torch.testing.assert_close(found.alpha[:, 0] + found.sigma[:, 0], torch.ones(4, dtype=torch.float64))


# --- the loss ---------------------------------------------------------------------------------------


def test_losses_are_means_of_levels_and_a_weighted_sum():
    x0, eps, t = normal(3, *TWO.shape, seed=0), normal(3, *TWO.shape, seed=1), f64([0.2, 0.5, 0.9])

    def net(x_t, t, cond):
        return torch.zeros_like(x_t)

    plain = transport("linear", predict="data").losses(net, x0, {}, t=t, eps=eps, layout=TWO)["loss"]
    squares = TWO.mean(x0**2)
    torch.testing.assert_close(plain, squares.sum(1))
    weighted = transport("linear", predict="data", level_weights=(1.0, 4.0))
    found = weighted.losses(net, x0, {}, t=t, eps=eps, layout=TWO)["loss"]
    torch.testing.assert_close(found, squares[:, 0] + 4 * squares[:, 1])
    with pytest.raises(InputError, match=r"`transport\.level_weights` has 2 numbers for 1 levels"):
        weighted.losses(net, x0, {}, t=t, eps=eps)


def test_networks_see_each_level_at_its_own_noise():
    x0, eps, t = normal(2, *TWO.shape, seed=0), normal(2, *TWO.shape, seed=1), f64([0.3, 0.8])
    tr, seen = transport("gvp", predict="v", level_shift=2.0), []

    def net(x_t, t, cond):
        seen.append((x_t, t))
        return torch.zeros_like(x_t)

    tr.losses(net, x0, {}, t=t, eps=eps, layout=TWO)
    ((x_t, time),) = seen
    assert torch.equal(time, t)  # one time for all levels
    low = PATHS["gvp"](t)
    torch.testing.assert_close(
        x_t[:, 4:], TWO.expand(low.alpha) * x0[:, 4:] + TWO.expand(low.sigma) * eps[:, 4:]
    )
    power = TWO.expand(low.alpha**2 / (low.alpha**2 + 4 * low.sigma**2))
    high = power.sqrt() * x0[:, :4] + (1 - power).sqrt() * eps[:, :4]
    torch.testing.assert_close(x_t[:, :4], high)


def test_the_noise_loss_of_v_is_that_of_the_noise_that_v_means():
    x0, eps, out = (normal(3, *TWO.shape, seed=seed) for seed in range(3))
    t = f64([0.2, 0.5, 0.9])
    found = transport("cosine", predict="v", loss="noise").losses(
        lambda *_: out, x0, {}, t=t, eps=eps, layout=TWO
    )["loss"]
    tr = transport("cosine", predict="v")
    c = Coeffs(*(TWO.expand(value) for value in tr.coeffs(t, TWO)))
    x_t = c.alpha * x0 + c.sigma * eps
    torch.testing.assert_close(found, TWO.mean((c.sigma * x_t + c.alpha * out - eps) ** 2).sum(1))


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_by_the_noise_every_prediction_has_one_loss(path, predict):
    """That of the noise, of what a perfect network for other data says."""
    x0, eps, other = (normal(3, *TWO.shape, seed=seed) for seed in range(3))
    t = f64([0.2, 0.5, 0.9])
    tr = transport(path, predict=predict, loss="noise")
    c = Coeffs(*(TWO.expand(value) for value in tr.coeffs(t, TWO)))
    x_t = c.alpha * x0 + c.sigma * eps
    wrong = (x_t - c.alpha * other) / c.sigma
    own = Coeffs(*(TWO.expand(value) for value in tr.own_coeffs(t, TWO)))
    out = PREDICTIONS[predict].view(other, wrong, own)
    found = tr.losses(lambda *_: out, x0, {}, t=t, eps=eps, layout=TWO)["loss"]
    torch.testing.assert_close(found, TWO.mean((wrong - eps) ** 2).sum(1), rtol=1e-8, atol=0)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_velocities_of_straight_paths_are_of_one_scale_at_every_level(power):
    """What a network learns is eps - x0, however much noise a level has; decoding knows it."""
    x0, eps, t = normal(3, *TWO.shape, seed=0), normal(3, *TWO.shape, seed=1), f64([0.01, 0.5, 0.99])
    tr = transport("linear", predict="velocity", level_shift=power)

    def net(x_t, t, cond):
        return eps - x0

    assert tr.losses(net, x0, {}, t=t, eps=eps, layout=TWO)["loss"].max() < 1e-28
    c = Coeffs(*(TWO.expand(value) for value in tr.coeffs(t, TWO)))
    found = tr.denoiser(net, TWO)(c.alpha * x0 + c.sigma * eps, t, {})
    torch.testing.assert_close(found.x0, x0)
    torch.testing.assert_close(found.eps, eps)
    torch.testing.assert_close(found.velocity, c.d_alpha * x0 + c.d_sigma * eps)  # of the time that all share


def test_the_lowest_level_speaks_as_alone():
    t = f64([0.01, 0.5, 0.99])
    for path in PATHS:
        tr = transport(path, predict="velocity", level_shift=2.0)
        own, plain = tr.own_coeffs(t, TWO), PATHS[path](t)
        for name in plain._fields:
            torch.testing.assert_close(getattr(own, name)[:, 1], getattr(plain, name))
        speeds = torch.hypot(own.d_alpha, own.d_sigma)
        torch.testing.assert_close(speeds[:, 0], speeds[:, 1])


# --- sampling ---------------------------------------------------------------------------------------

MEANS, SPREADS = (0.5, -1.0), (0.4, 0.8)  # of the high and the low level


def exact(tr):
    """The network that knows the data: independent normal numbers, of one mean and spread for each level."""
    mean, spread = (TWO.expand(f64([pair])) for pair in (MEANS, SPREADS))

    def net(x_t, t, cond):
        c = Coeffs(*(TWO.expand(value) for value in tr.coeffs(t, TWO)))
        total = (c.alpha * spread) ** 2 + c.sigma**2
        x0 = mean + c.alpha * spread**2 / total * (x_t - c.alpha * mean)
        eps = c.sigma / total * (x_t - c.alpha * mean)
        return PREDICTIONS[tr.predict].view(
            x0, eps, Coeffs(*(TWO.expand(value) for value in tr.own_coeffs(t, TWO)))
        )

    return net


@pytest.mark.parametrize(("path", "predict"), [("linear", "velocity"), ("cosine", "v")])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "dopri5"])
def test_every_sampler_gives_each_level_its_distribution(sampler, path, predict):
    tr = transport(path, predict=predict, level_shift=1.0)
    late = (
        {"last_step_size": 0.004} if "last_step_size" in SAMPLERS[sampler].choices else {}
    )  # it shrinks the spread
    steps = 200 if sampler == "sde_dpmpp_2m" else 100  # 5 % too wide with 100, 2 % with 200, 0 with 400
    chosen = SamplingConfig(sampler=sampler, steps=steps, **late)
    stream = torch.Generator().manual_seed(0)

    def noise(x):
        return torch.randn(x.shape, generator=stream, dtype=x.dtype)

    x = noise(torch.empty(1000, *TWO.shape, dtype=torch.float64))
    found = chosen.run(tr.denoiser(exact(tr), TWO), x, chosen.times(tr), {}, noise=noise)
    for level, mean, spread in zip(unpack(found, TWO.ratios), MEANS, SPREADS, strict=True):
        assert level.mean().item() == pytest.approx(mean, abs=0.05)
        assert level.std().item() == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_the_flow_of_each_level_is_solved_to_the_tolerance(path):
    """Of normal data the probability flow is a straight map: what is left of the noise is scaled."""
    tr = transport(path, predict="v")
    chosen = SamplingConfig(sampler="dopri5", tolerance=1e-7)
    x, grid = normal(3, *TWO.shape, seed=0), chosen.times(tr)
    found = chosen.run(tr.denoiser(exact(tr), TWO), x, grid, {}, noise=None)
    first, last = (Coeffs(*(TWO.expand(value[None]) for value in tr.coeffs(t, TWO))) for t in grid[[0, -1]])
    mean, spread = (TWO.expand(f64([pair])) for pair in (MEANS, SPREADS))
    total = [(c.alpha**2 * spread**2 + c.sigma**2).sqrt() for c in (first, last)]
    expected = last.alpha * mean + total[1] / total[0] * (x - first.alpha * mean)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_one_level_is_no_pyramid():
    t = f64([0.3, 0.6])
    for layout in (None, Layout((3, 8, 8))):
        assert transport("gvp", level_shift=2.0).coeffs(t, layout).alpha.shape == (2,)
    only = Pyramid.of(3, 8, 8, ratios=(1,))
    torch.testing.assert_close(transport("gvp").coeffs(t, only).alpha[:, 0], PATHS["gvp"](t).alpha)
    scaled = PyramidCodec(IdentityConfig().build(1), (1,), (2.0,))
    assert scaled.layout(4, 8, 8) == layout_of(1, 4, 8, 8)  # of a clip its frames, which can be known


# clips


def test_levels_of_clips_have_frames_of_their_own():
    layout = Pyramid.of(2, 8, 12, 8, ratios=(4, 2, 1), frame_ratios=(4, 1, 1))
    assert layout.shape == (2 * (4 * 16 + 4 + 1), 2, 3, 2)
    assert layout.parts == 3
    x = torch.arange(3 * math.prod(layout.shape)).view(3, *layout.shape)
    levels = unpack(x, layout.ratios, layout.frame_ratios)
    assert [tuple(level.shape) for level in levels] == [(3, 2, 8, 12, 8), (3, 2, 2, 6, 4), (3, 2, 2, 3, 2)]
    assert pack(levels, layout.ratios, layout.frame_ratios).equal(x)
    # Squares of four frames that follow each other are where the lowest level has one pixel.
    marked = torch.zeros_like(levels[0])
    marked[:, :, 4:, 8:, 4:] = 1
    packed = pack([marked, *map(torch.zeros_like, levels[1:])], layout.ratios, layout.frame_ratios)
    assert {tuple(place) for place in packed.nonzero()[:, 2:].tolist()} == {(1, 2, 1)}
    values = torch.tensor([[1.0, 2.0, 3.0]])
    spread = layout.expand(values).expand(1, *layout.shape)
    assert [part.unique().tolist() for part in layout.split(spread)] == [[1.0], [2.0], [3.0]]


def test_lower_levels_of_a_clip_are_averages_of_every_few_frames():
    codec = PyramidCodec(IdentityConfig().build(1), (2, 1), frame_ratios=(2, 1))
    clips = torch.randint(0, 256, (2, 1, 6, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    state = codec.encode(clips)
    assert state.shape == (2, *codec.layout(6, 4, 4).shape)
    assert codec.decode(state).equal(clips)
    low = unpack(state, (2, 1), (2, 1))[1]
    expected = (clips[:, :, ::2].float() / 127.5 - 1).unflatten(4, (2, 2)).unflatten(3, (2, 2)).mean((4, 6))
    torch.testing.assert_close(low, expected)
    assert codec.side_by_side(state).shape == (2, 1, 6, 4, 8)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((6, 4, 4), "a clip of 6 frames has no levels of 4:1 in frames"),
        ((4, 4), "an image has no levels of 4:1"),
    ],
)
def test_frames_that_levels_do_not_divide(size, message):
    with pytest.raises(InputError, match=message):
        Pyramid.of(1, *size, ratios=(2, 1), frame_ratios=(4, 1))
