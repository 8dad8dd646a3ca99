"""Levels around any network, the pyramids they work on, and how those are sampled: alone, without a run."""

import numpy as np
import pytest
import torch
from torch import nn

from ditkit.backbones import (
    BACKBONES,
    DiTConfig,
    MatryoshkaConfig,
    MDMConfig,
    OuterLevel,
    UDiT,
    UDiTConfig,
    UNetConfig,
    build,
    matryoshka,
)
from ditkit.codecs import IdentityConfig, PyramidCodec
from ditkit.codecs.identity import to_signed, to_uint8
from ditkit.errors import InputError
from ditkit.layout import Pyramid, pack, unpack
from ditkit.sampling import cfg, threshold
from ditkit.sampling.grids import respaced, time_grid
from ditkit.transports import transport

B, C, DIM, M, CLASSES = 3, 2, 12, 4, 5
INNER = {
    "text": DiTConfig(width=20, depth=2, heads=2, patch=2, text="cross_attention", text_pooled=True),
    "sequence": DiTConfig(width=16, depth=1, heads=2, patch=1, conditioning="cross_attention"),
    "U-DiT": UDiTConfig(width=8, heads=2, depth=(1, 1, 1, 1, 1)),
    "UNet": UNetConfig(width=32, multipliers=(1, 2), depth=1),
    "MDM": MDMConfig(widths=(32, 64), depth=(1, 1), attention=(0, 1), condition_width=64, text_width=16),
}
CONV, PATCH = OuterLevel(widths=(32, 32), depth=(1, 1)), OuterLevel(widths=(32,), depth=(1,), patch=2)
MIXED = OuterLevel(widths=(32, 64), depth=(1, 2), patch=2, normalised=True)
AROUND = [(CONV,), (MIXED,), (PATCH, CONV), (PATCH, PATCH, PATCH)]
T = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
every_inner = pytest.mark.parametrize("name", INNER)
every_nest = pytest.mark.parametrize("levels", AROUND, ids=lambda levels: f"{len(levels)} levels")


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randomised(module: nn.Module, seed=1, std=0.1):
    """Every parameter a little other than it was, so that none is zero."""
    stream = torch.Generator().manual_seed(seed)
    for value in module.parameters():
        value.data += std * torch.randn(value.shape, generator=stream)
    return module


def network(name, levels=()):
    """The inner network of that name, with levels around it; with random weights everywhere but in the levels."""
    config = INNER[name] if not levels else MatryoshkaConfig(inner=INNER[name], levels=levels)
    torch.manual_seed(0)
    packed = C * sum(ratio**2 for ratio in config.ratios)
    net = build(config, packed, CLASSES, packed, DIM if name in ("text", "MDM") else 0)
    randomised(net.inner if levels else net)
    return net


def conditions(name):
    """Labels, and a text where the network reads one."""
    cond = {"label": torch.arange(B)}
    if name in ("text", "MDM"):
        cond["text"], cond["text_pooled"] = normal(B, M, DIM, seed=2), normal(B, DIM, seed=3)
        cond["text_mask"] = torch.arange(M) < torch.tensor([[2], [4], [1]])
    return cond


def state(net):
    """Noise on a lowest level that is twice as wide as high, as small as the network takes it."""
    height = 8 if isinstance(net.inner, UDiT) else 4
    return normal(B, C * sum(ratio**2 for ratio in net.ratios), height, 2 * height)


def off(net):
    """The network with both ways between its levels closed."""
    for outer in net.outer:
        for way in (outer.inward, outer.outward):
            nn.init.zeros_(way.weight)
            nn.init.zeros_(way.bias)
    return net


# --- networks ---------------------------------------------------------------------------------------


@every_inner
@every_nest
@torch.no_grad()
def test_levels_put_around_a_network_change_nothing(name, levels):
    """Its predictions are its own to the bit, and theirs are zero."""
    net = network(name, levels)
    x, cond = state(net), conditions(name)
    *outer, inner = unpack(net(x, T, cond), net.ratios)
    assert inner.equal(net.inner(unpack(x, net.ratios)[-1], T, cond))
    assert inner.std() > 0.01
    height, width = inner.shape[2:]
    assert [out.shape[2:] for out in outer] == [(height * r, width * r) for r in net.ratios[:-1]]
    assert not any(out.any() for out in outer)


@every_inner
@every_nest
def test_gradients_reach_every_parameter(name, levels):
    """Of every level, and by the highest one's predictions alone of all but the heads of the others."""
    net, cond = randomised(network(name, levels), std=0.05), conditions(name)
    known = torch.tensor([True, True, False])  # as in training, some have no condition
    cond = {
        key: torch.where(known.view(-1, *[1] * (empty.ndim - 1)), cond[key], empty)
        for key, empty in net.null(cond).items()
    }
    outs = unpack(net(state(net), T, cond), net.ratios)
    outs[0].square().mean().backward(retain_graph=True)
    way_in = {f"outer.{k}.{way}" for k in range(len(levels)) for way in ("inward", "outward")}
    reached = {
        key.rpartition(".")[0] for key, p in net.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert way_in < reached
    sum(out.square().mean() for out in outs[1:]).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@every_inner
@torch.no_grad()
def test_mixed_resolutions_are_the_parts_alone(name):
    """Images beyond `rows` are what the lower levels make of them; the first what all make of them."""
    net, cond = randomised(network(name, (CONV, PATCH)), std=0.05), conditions(name)
    images = unpack(state(net), net.ratios)
    found = unpack(net(state(net), T, cond, rows=(1, 2)), net.ratios)
    two = network(name, (PATCH,))
    two.load_state_dict({key: net.state_dict()[key] for key in two.state_dict()})
    whole = unpack(net(state(net), T, cond), net.ratios)
    without = unpack(two(pack(images[1:], (2, 1)), T, cond), (2, 1))
    alone = net.inner(images[2], T, cond)
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert not found[0][1:].any()
    assert not found[1][2:].any()
    for level in range(3):
        torch.testing.assert_close(found[level][:1], whole[level][:1], **close)
    for level in (1, 2):
        torch.testing.assert_close(found[level][1:2], without[level - 1][1:2], **close)
    torch.testing.assert_close(found[2][2:], alone[2:], **close)
    assert not torch.allclose(whole[2][2:], alone[2:], **close)
    for rows, level in (((0, 1), 1), ((0, 0), 2)):  # none of these images has the highest level, or any
        found = unpack(net(state(net), T, cond, rows=rows), net.ratios)
        expected = without[0][:1] if level == 1 else alone
        assert not any(part.any() for part in found[:level])
        torch.testing.assert_close(found[level][: len(expected)], expected, **close)
    for rows in ((1,), (-1, 1), (2, 1), (1, 4), (1, 2, 3)):
        with pytest.raises(InputError, match=r"rows \(.*\) of 3 images for 2 levels around another"):
            net(state(net), T, cond, rows=rows)


@every_inner
@torch.no_grad()
def test_a_time_for_each_level(name):
    """Equal ones are one for all; and a level's own condition, it alone reads."""
    net, cond = randomised(network(name, (CONV, PATCH)), std=0.05), conditions(name)
    x = state(net)
    assert net(x, T[:, None].expand(-1, 3), cond).equal(net(x, T, cond))
    before = unpack(off(net)(x, T, cond), net.ratios)
    for level in range(3):
        times = T[:, None].repeat(1, 3)
        times[:, level] = T.flip(0)
        after = unpack(net(x, times, cond), net.ratios)
        assert [not a.equal(b) for a, b in zip(after, before, strict=True)] == [k == level for k in range(3)]


@every_inner
@torch.no_grad()
def test_every_level_reads_the_conditions(name):
    """Labels, and a text as a whole, even where nothing passes between levels."""
    net, cond = off(randomised(network(name, (CONV, PATCH)), std=0.05)), conditions(name)
    before = unpack(net(state(net), T, cond), net.ratios)
    key = {"text": "text_pooled", "MDM": "text"}.get(name, "label")
    # Other numbers, not all larger by one: a norm of the pooled text would take that away again.
    for changed in ({"label": cond["label"] + 1}, {key: cond[key].flip(-1)}):
        after = unpack(net(state(net), T, {**cond, **changed}), net.ratios)
        assert all((a - b).abs().max() > 0.01 for a, b in zip(after, before, strict=True)), changed.keys()
    assert (net.classes, net.text_dim) == (CLASSES, net.inner.text_dim)
    empty, theirs = net.null(cond), net.inner.null(cond)
    assert empty.keys() == theirs.keys()
    assert all(value.equal(theirs[key]) for key, value in empty.items())
    assert (empty["label"] == CLASSES).all()
    with pytest.raises(InputError, match="has 5 classes: give cond a 'label'"):
        net(state(net), T, {key: value for key, value in cond.items() if key != "label"})


@torch.no_grad()
def test_fused_is_the_same_function_with_weights_of_its_own():
    net, cond = randomised(network("U-DiT", (CONV,)), std=0.05), conditions("U-DiT")
    before, fused = net(state(net), T, cond), net.fused()
    assert fused is not net
    assert sum(p.numel() for p in fused.parameters()) < sum(p.numel() for p in net.parameters())
    torch.testing.assert_close(fused(state(net), T, cond), before, rtol=1e-4, atol=1e-4)
    randomised(fused)
    assert net(state(net), T, cond).equal(before)
    plain = network("text", (CONV,))
    assert plain.fused() is plain


def test_configurations_by_name_and_number():
    assert matryoshka("DiT-S/4", 2) == MatryoshkaConfig(
        inner=BACKBONES["DiT-S/4"], levels=(OuterLevel(),) * 2
    )
    assert matryoshka(INNER["UNet"], [CONV, MIXED]).ratios == (8, 4, 1)
    assert MatryoshkaConfig(levels=(PATCH, OuterLevel(widths=(32,), depth=(1,), patch=3))).ratios == (6, 3, 1)
    for inner, levels, message in (
        ("DiT-S/3", 1, "unknown backbone 'DiT-S/3' inside; choose one of: DiT"),
        ("MDM-256", 1, "unknown backbone 'MDM-256' inside"),
        ("DiT-S/2", 0, "levels"),
    ):
        with pytest.raises(InputError, match=message):
            matryoshka(inner, levels)
    with pytest.raises(InputError, match="UNet takes no text; take a DiT or an MDM"):
        build(matryoshka(INNER["UNet"]), 5, 0, 5, text_dim=4)
    with pytest.raises(InputError, match="3x8"):  # the lowest level, which a patch of 2 does not divide
        network("text", (CONV,)).check_size(3, 8)


# --- pyramids of images -----------------------------------------------------------------------------


class Noisy:
    """Pixels with noise added: a codec that draws."""

    random, channels = True, 3
    layout = staticmethod(lambda height, width: IdentityConfig().build(3).layout(height, width))
    decode = staticmethod(to_uint8)

    @staticmethod
    def encode(images, noise=None):
        return to_signed(images) + (0 if noise is None else noise)


def pictures(*shape):
    stream = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream)


def averaged(levels, by):
    """The means over squares of `by` pixels, in numpy."""
    *rest, height, width = levels.shape
    return levels.reshape(*rest, height // by, by, width // by, by).mean((-3, -1))


def test_levels_are_averages_of_the_level_above():
    images = pictures(2, 3, 12, 24)
    codec = PyramidCodec(IdentityConfig().build(3), (6, 2, 1))
    state = codec.encode(images)
    assert state.shape[1:] == codec.layout(12, 24).shape == (3 * 41, 2, 4)
    assert codec.channels == 3 * 41
    high = to_signed(images).double().numpy()
    expected = [high, averaged(high, 3), averaged(averaged(high, 3), 2)]
    for level, (found, mean) in enumerate(zip(unpack(state, (6, 2, 1)), expected, strict=True)):
        np.testing.assert_allclose(found.double().numpy(), mean, atol=1e-6)
        assert codec.decode(state, level).equal(to_uint8(found))
    assert codec.decode(state).equal(images)


def test_levels_stand_side_by_side_the_lowest_first():
    codec = PyramidCodec(IdentityConfig().build(3), (4, 2, 1))
    state = codec.encode(pictures(2, 3, 8, 16))
    row = codec.side_by_side(state)
    assert row.shape == (2, 3, 8, 48)
    for place, level in enumerate((2, 1, 0)):
        part, by = row[..., 16 * place : 16 * (place + 1)], 2**level
        image = codec.decode(state, level).numpy()
        np.testing.assert_array_equal(part.numpy(), np.kron(image, np.ones((1, 1, by, by), dtype=np.uint8)))


def test_scales_of_levels():
    images, ratios, scales = pictures(2, 3, 8, 8), (2, 1), (0.5, 3.0)
    plain = PyramidCodec(IdentityConfig().build(3), ratios)
    scaled = PyramidCodec(IdentityConfig().build(3), ratios, scales)
    for scale, a, b in zip(
        scales, unpack(plain.encode(images), ratios), unpack(scaled.encode(images), ratios), strict=True
    ):
        torch.testing.assert_close(b, scale * a)
    for level in (0, 1):
        found, other = scaled.decode(scaled.encode(images), level), plain.decode(plain.encode(images), level)
        assert (found.int() - other.int()).abs().max() <= 1
    assert scaled.decode(scaled.encode(images)).equal(images)


def test_codecs_that_draw_do_so_at_the_highest_level():
    images, codec = pictures(2, 3, 8, 8), PyramidCodec(Noisy, (2, 1))
    assert codec.random
    noise = normal(2, *codec.layout(8, 8).shape)
    high, low = unpack(codec.encode(images, noise), (2, 1))
    drawn = to_signed(images) + unpack(noise, (2, 1))[0]
    assert high.equal(drawn)
    torch.testing.assert_close(low, nn.functional.avg_pool2d(drawn, 2))
    assert unpack(codec.encode(images), (2, 1))[0].equal(to_signed(images))


def test_pyramids_that_cannot_be():
    base = IdentityConfig().build(1)
    for ratios, scales, message in (
        ((2, 2, 1), (), "levels of 2:2:1: each must be a multiple of the next"),
        ((4, 2), (), "the last be 1"),
        ((2, 1), (1.0,), "`codec.level_scale` has 1 numbers for 2 levels; give one for each"),
    ):
        with pytest.raises(InputError, match=message):
            PyramidCodec(base, ratios, scales)
    with pytest.raises(
        InputError, match=r"10x12 has no levels of 4:1; .* multiples of 4: change `data\.size`"
    ):
        PyramidCodec(base, (4, 1)).layout(10, 12)


# --- sampling ---------------------------------------------------------------------------------------


TWO = Pyramid.of(1, 4, 4, ratios=(2, 1))  # 4 channels of the high level, 1 of the low


def by_label(scale):
    """A denoiser of levels by a network that says x times the label, guided away from label 0."""
    denoise = transport("cosine", predict="v", level_shift=1.0).denoiser(
        lambda x, t, cond: x * cond["label"].to(x)[:, None, None, None], TWO
    )
    return cfg(denoise, lambda cond: {"label": torch.zeros_like(cond["label"])}, scale)


def test_a_guidance_scale_for_each_level():
    x, cond = normal(3, *TWO.shape, dtype=torch.float64), {"label": torch.tensor([1, 2, 3])}
    one, plain = by_label(3.0)(x, T, cond), by_label(1.0)(x, T, cond)
    same, mixed = by_label((3.0, 3.0))(x, T, cond), by_label((3.0, 1.0))(x, T, cond)
    off = by_label((0.0, 3.0))(x, T, cond)
    empty = by_label(1.0)(x, T, {"label": torch.zeros(3, dtype=torch.long)})
    for name in ("x0", "eps", "velocity"):
        a, b, c, d, e, f = (getattr(p, name) for p in (one, plain, same, mixed, off, empty))
        torch.testing.assert_close(c, a)
        torch.testing.assert_close(d[:, :4], a[:, :4])
        torch.testing.assert_close(d[:, 4:], b[:, 4:])  # 1: the condition's own
        torch.testing.assert_close(e[:, :4], f[:, :4])  # 0: that of nothing
        torch.testing.assert_close(e[:, 4:], a[:, 4:])
        assert not a.allclose(b)


@pytest.mark.parametrize(
    ("name", "quantile", "most"), [("clip", None, 1.0), ("dynamic", 0.995, 100.0), ("dynamic_if", 0.95, 1.5)]
)
def test_thresholds(name, quantile, most):
    """Each level of each image by itself; and the noise is what then explains the state."""
    sizes = torch.tensor([0.2, 1.2, 4.0], dtype=torch.float64)[:, None, None, None]
    estimate = normal(3, *TWO.shape, dtype=torch.float64) * sizes
    estimate[:, 4:] *= 3
    tr = transport("gvp", predict="data", level_shift=1.0)
    x = normal(3, *TWO.shape, seed=1, dtype=torch.float64)
    p = threshold(tr.denoiser(lambda *_: estimate, TWO), name)(x, T, {})
    for image in range(3):
        for part in (slice(0, 4), slice(4, 5)):
            values = estimate[image, part].numpy()
            bound = 1.0 if quantile is None else np.clip(np.quantile(np.abs(values), quantile), 1.0, most)
            expected = np.clip(np.clip(values, -bound, bound) / bound, -1, 1)
            np.testing.assert_allclose(p.x0[image, part].numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(p.coeffs.alpha * p.x0 + p.coeffs.sigma * p.eps, x)
    assert p.x0.abs().max() == 1
    assert threshold(tr.denoiser(lambda *_: estimate[:, :1]), name)(x[:, :1], T, {}).x0.abs().max() == 1


def test_the_released_grids():
    """Of the released sampler's times: round(k · 1001 / (N + 1)), and 0 at last."""
    tr = transport("cosine", predict="v")
    knots = {n: time_grid(tr, "jump", 1, respacing=f"mdm{n}") * 1000 for n in (1, 50, 250, 1000)}
    assert knots[50][[0, 1, 2, -3, -2, -1]].round().tolist() == [981, 962, 942, 39, 20, 0]
    assert knots[250][[0, 1, -3, -2, -1]].round().tolist() == [997, 993, 8, 4, 0]
    assert knots[1000].round().equal(torch.arange(1000, -1, -1, dtype=torch.float64))
    assert [len(times) - 1 for times in knots.values()] == [1, 50, 250, 1000]
    assert all((times.diff() < 0).all() for times in knots.values())
    for wrong, message in (
        ("mdm0", "give 1 to 1000 steps"),
        ("mdm1001", "1 to 1000"),
        ("mdm", "cannot read"),
    ):
        with pytest.raises(InputError, match=message):
            respaced(wrong)


# clips

CLIPS = DiTConfig(width=16, depth=2, heads=2, patch=2, tubelet=1, attention="factorised")
IN_TIME = (OuterLevel(widths=(32,), depth=(1,), patch=2, frames=2), CONV)


def test_levels_around_a_network_of_clips_start_as_nothing():
    config = MatryoshkaConfig(inner=CLIPS, levels=IN_TIME)
    assert (config.ratios, config.frame_ratios, config.patch_sizes) == ((4, 2, 1), (2, 1, 1), (2, 8, 8))
    packed = C * (2 * 16 + 4 + 1)
    net = build(config, packed, CLASSES, packed)
    randomised(net.inner)
    x, cond = normal(B, packed, 3, 4, 4), {"label": torch.tensor([0, 1, 2])}
    levels = unpack(x, config.ratios, config.frame_ratios)
    found = unpack(net(x, T, cond), config.ratios, config.frame_ratios)
    assert [level.shape for level in found] == [level.shape for level in levels]
    torch.testing.assert_close(found[-1], net.inner(levels[-1], T, cond))
    assert not any(level.any() for level in found[:-1])


def test_what_levels_of_clips_hear_of_each_other():
    """A frame of the highest level reaches the frame of the lowest that stands for it, and others through that."""
    config = MatryoshkaConfig(inner=CLIPS, levels=IN_TIME)
    packed = C * (2 * 16 + 4 + 1)
    net = randomised(build(config, packed, CLASSES, packed)).eval()
    x, cond = normal(1, packed, 3, 4, 4), {"label": torch.tensor([0])}
    levels = unpack(x, config.ratios, config.frame_ratios)
    levels[0][:, :, 3] += 1  # the second frame of the lowest's second
    changed = pack(levels, config.ratios, config.frame_ratios)
    before, after = (unpack(net(y, T[:1], cond), config.ratios, config.frame_ratios) for y in (x, changed))
    moved = [(b - a).abs().amax((0, 1, 3, 4)) > 1e-7 for a, b in zip(before, after, strict=True)]
    assert all(frames.all() for frames in moved)  # attention over time takes it everywhere
    net.inner.blocks[1].attention.proj.weight.data.zero_()  # the block over time
    net.inner.blocks[1].attention.proj.bias.data.zero_()
    before, after = (unpack(net(y, T[:1], cond), config.ratios, config.frame_ratios) for y in (x, changed))
    moved = [((b - a).abs().amax((0, 1, 3, 4)) > 1e-7).tolist() for a, b in zip(before, after, strict=True)]
    assert moved == [[False, False, True, True, False, False], [False, True, False], [False, True, False]]


def test_mixed_resolutions_of_clips():
    config = MatryoshkaConfig(inner=CLIPS, levels=IN_TIME)
    packed = C * (2 * 16 + 4 + 1)
    net = randomised(build(config, packed, CLASSES, packed)).eval()
    x, cond = normal(B, packed, 3, 4, 4), {"label": torch.tensor([0, 1, 2])}
    whole = unpack(net(x[:1], T[:1], {"label": cond["label"][:1]}), config.ratios, config.frame_ratios)
    part = unpack(net(x, T, cond, rows=(1, 2)), config.ratios, config.frame_ratios)
    for mine, alone in zip(part, whole, strict=True):
        torch.testing.assert_close(mine[:1], alone, atol=1e-5, rtol=1e-4)
    assert not part[0][1:].any()
    assert part[1][1].any()
    assert not part[1][2:].any()


@pytest.mark.parametrize(
    ("inner", "level", "message"),
    [
        (DiTConfig(), OuterLevel(frames=2), "levels of more frames go around a network of clips"),
        (DiTConfig(tubelet=2), OuterLevel(), "levels go around tubelets of one frame, not 2"),
    ],
)
def test_levels_that_do_not_go_around(inner, level, message):
    with pytest.raises(ValueError, match=message):
        MatryoshkaConfig(inner=inner, levels=(level,))
