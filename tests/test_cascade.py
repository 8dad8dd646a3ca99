"""Cascades: the highest level of a pyramid above the lower ones that another model made."""

import pytest
import torch
from conftest import CPU
from test_matryoshka_training import LEVEL, SMALL, THREE, TWO, nested, quiet

from ditkit.backbones import MatryoshkaConfig
from ditkit.cli import main
from ditkit.errors import InputError
from ditkit.layout import Pyramid
from ditkit.pipeline import Pipeline, load
from ditkit.randomness import RowNoise
from ditkit.sampling import SAMPLERS, with_known
from ditkit.sampling.config import SamplingConfig, SamplingRequest
from ditkit.transports import transport

LAYOUT = Pyramid.of(1, 4, 4, ratios=(2, 1))  # 4 channels of the high level, 1 of the low
T = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
PATHS = {"linear": "velocity", "cosine": "v", "vp": "noise"}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pipe(backbone, path="linear", size=8, **sections):
    """Not trained, but with random weights."""
    values = {"path": path, "predict": PATHS[path], **sections.pop("transport", {})}
    chosen = nested(backbone, data={"size": size}, transport=values, **sections)
    net = chosen.build_backbone().eval().requires_grad_(False)
    stream = torch.Generator().manual_seed(0)
    for value in net.parameters():
        value.data += 0.05 * torch.randn(value.shape, generator=stream)
    return Pipeline(chosen, net, chosen.build_codec(), CPU)


def cascade(path="linear", backbone=TWO, **sections):
    return pipe(backbone, path, transport={"cascade": 0.3}, **sections)


def test_a_cascade_learns_the_highest_level_only():
    tr = transport("linear", predict="data", cascade=0.2, level_weights=(1.0, 7.0))
    x0, eps = normal(3, *LAYOUT.shape), normal(3, *LAYOUT.shape, seed=1)
    out = normal(3, *LAYOUT.shape, seed=2)
    t, learned = tr.known_parts(T, T[:, None].expand(-1, 3), LAYOUT)
    found = tr.losses(lambda *_: out, x0, {}, t=t, eps=eps, layout=LAYOUT, weights=learned)["loss"]
    torch.testing.assert_close(found, (out - x0)[:, :4].square().mean((1, 2, 3)))


def test_a_cascade_sees_low_levels_with_less_noise():
    three = Pyramid.of(1, 4, 4, ratios=(4, 2, 1))
    tr = transport("linear", predict="data", cascade=0.2, level_shift=0.0)
    v = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    v = v[:, None].expand(-1, 3)
    times, _ = tr.known_parts(T, v, three)
    expected = [[0.1, 0.0, 0.0], [0.5, 0.1, 0.1], [0.9, 0.2, 0.2]]
    torch.testing.assert_close(times, torch.tensor(expected, dtype=torch.float64))
    assert transport("linear").known_parts(T, v, three) == (T, None)
    x0, eps, seen = normal(3, *three.shape), normal(3, *three.shape, seed=1), []
    tr.losses(lambda x, t, c: seen.append((x, t)) or x, x0, {}, t=times, eps=eps, layout=three)
    ((x_t, own),) = seen
    assert own.equal(times)
    assert x_t[0, 16:].equal(x0[0, 16:])  # clean
    torch.testing.assert_close(x_t[2, 16:], 0.8 * x0[2, 16:] + 0.2 * eps[2, 16:])


@pytest.mark.parametrize("time", [0.0, 0.25])
def test_the_network_sees_known_levels_at_their_own_time(time):
    tr, seen = transport("linear", predict="velocity", level_shift=0.0), []
    x, clean, noise = (normal(3, *LAYOUT.shape, seed=seed) for seed in range(3))
    denoise = with_known(
        tr.denoiser(lambda *a: seen.append(a) or torch.ones_like(x), LAYOUT),
        clean,
        (False, True),
        noise,
        time,
    )
    t = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    p = denoise(x, t, {})
    ((x_t, times, _),) = seen
    assert times.equal(torch.stack([t, torch.full_like(t, time)], 1))
    assert x_t[:, :4].equal(x[:, :4])
    torch.testing.assert_close(x_t[:, 4:], (1 - time) * clean[:, 4:] + time * noise[:, 4:])
    torch.testing.assert_close(p.x0[:, 4:], clean[:, 4:])
    torch.testing.assert_close(p.x0[:, :4], x[:, :4] - t[:, None, None, None])  # of velocity 1
    torch.testing.assert_close(p.velocity[:, :4], torch.ones(3, 4, 2, 2, dtype=torch.float64))
    with pytest.raises(InputError, match="1 parts known or not, the state has another number"):
        with_known(tr.denoiser(lambda *a: x, LAYOUT), clean, (False,), noise)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_exact_conditional_samples(sampler, path):
    """High pixels that are the low one and a little noise: so are samples above the low level, with every sampler."""
    spread, tr = 0.2, transport(path, predict=PATHS[path], level_shift=0.0)
    chosen = SamplingConfig(sampler=sampler, **({} if sampler == "dopri5" else {"steps": 150}))
    if "last_step_size" in chosen.choices:
        chosen = chosen.override(SamplingRequest(last_step_size=0.01))
    n = 1 if sampler == "dopri5" else 400
    stream = torch.Generator().manual_seed(0)

    def noise(like):
        return torch.randn(like.shape, generator=stream, dtype=like.dtype)

    def net(x_t, t, cond):
        c = tr.coeffs(t, LAYOUT)
        a, s = (LAYOUT.expand(value)[:, :4] for value in (c.alpha, c.sigma))
        gap = x_t[:, :4] - a * x_t[:, 4:]  # the low level is clean
        total = (a * spread) ** 2 + s**2
        x0, eps = x_t[:, 4:] + a * spread**2 / total * gap, s / total * gap
        out = {
            "velocity": lambda: eps - x0,
            "v": lambda: a * eps - s * x0,
            "noise": lambda: eps,
        }[PATHS[path]]()
        return torch.cat([out, torch.full_like(x_t[:, 4:], 7.0)], dim=1)  # the rest is not used

    clean = normal(n, *LAYOUT.shape, seed=5)
    conditional = with_known(tr.denoiser(net, LAYOUT), clean, (False, True), noise(clean))
    found = chosen.run(conditional, noise(clean), chosen.times(tr), {}, noise=noise)
    assert found.isfinite().all()
    left = found[:, :4] - clean[:, 4:]
    if n == 1:
        assert left.abs().max() < 4 * spread
        return
    assert left.mean().item() == pytest.approx(0, abs=0.03)
    assert left.std().item() == pytest.approx(spread, rel=0.12)


@pytest.mark.parametrize("sampler", ["heun", "ddim", "euler_maruyama", "dopri5"])
@pytest.mark.parametrize("path", PATHS)
def test_lower_levels_are_those_of_the_other_model(path, sampler):
    lower, high = pipe(SMALL, path, size=4), cascade(path)
    how = {"seeds": [3, 5], "lower": lower, "sampler": sampler}
    how |= {"tolerance": 0.5} if sampler == "dopri5" else {"steps": 3}
    made = lower.generate({"label": [1, 2]}, seeds=[3, 5])
    assert high.generate({"label": [1, 2]}, levels="1", **how).equal(made)
    whole = high.generate({"label": [1, 2]}, **how)
    alone = high.generate({"label": [2]}, **{**how, "seeds": [5]})
    assert (whole[1].int() - alone[0].int()).abs().max() <= 1


def test_three_levels_on_two():
    lower, high = pipe(MatryoshkaConfig(inner=SMALL, levels=(LEVEL,)), size=4), cascade(backbone=THREE)
    row = high.generate({"label": [1]}, seeds=[0], lower=lower, levels="all")
    two = lower.generate({"label": [1]}, seeds=[0], levels="all")
    assert row[..., :16:2][:, :, ::2].equal(two)


def test_noise_of_both_models_has_nothing_in_common(monkeypatch):
    """Both begin with the same seed."""
    drawn = []
    call = RowNoise.__call__
    monkeypatch.setattr(RowNoise, "__call__", lambda self, like: drawn.append(call(self, like)) or drawn[-1])
    cascade().generate({"label": [1]}, seeds=[0], lower=pipe(SMALL, size=4), lower_noise=0.2)
    numbers = torch.cat([values.flatten() for values in drawn])
    assert len(drawn) == 3
    assert len(numbers.unique()) == len(numbers)


def test_guidance_and_its_interval():
    """Known levels have a time of their own, which is not that of the interval."""
    lower, high = pipe(SMALL, size=4), cascade()
    how = {"seeds": [0], "lower": lower, "sampler": "euler", "steps": 4}
    plain, never, always, inside = (
        high.generate({"label": [1]}, guidance=scale, interval=interval, **how)
        for scale, interval in ((1.0, (0.0, 1.0)), (6.0, (0.1, 0.15)), (6.0, (0.0, 1.0)), (6.0, (0.2, 0.8)))
    )
    assert never.equal(plain)
    assert not any(a.equal(b) for a, b in ((always, plain), (inside, plain), (inside, always)))


def test_a_model_of_a_cascade_trains_and_is_sampled_by_commands(tmp_path, capsys):
    """Its previews would need the other model: there are none."""
    few = {"images": 32}
    low = nested(SMALL, data={"size": 4}, train=few)
    quiet(low, tmp_path / "low")
    quiet(nested(transport={"cascade": 0.3}, train={**few, "validate_images": 32}), tmp_path / "high")
    assert (tmp_path / "high" / "validation.png").exists()
    assert not list((tmp_path / "high" / "previews").iterdir())
    sample = ["sample", str(tmp_path / "high"), "--n", "2", "--out", str(tmp_path / "samples")]
    assert main([*sample, "--lower", str(tmp_path / "low"), "--lower-noise", "0.1", "--levels", "all"]) == 0
    assert main(sample) == 2
    assert "--lower: this model learned its highest level only" in capsys.readouterr().err
    assert main(["sample", str(tmp_path / "low"), "--lower", str(tmp_path / "low"), "--n", "2"]) == 2
    assert "--lower: this model makes all its levels itself; leave it out" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"train\.score_images: another model makes the lower levels"):
        nested(transport={"cascade": 0.3}, train={**few, "score_images": 32})


def test_lower_models_that_do_not_fit():
    high = cascade(codec={"level_scale": (1.0, 2.0)})
    for other, message in (
        (pipe(SMALL), "a model of 8 pixels in 1 levels; this one needs 4 in 1"),
        (pipe(MatryoshkaConfig(inner=SMALL, levels=(LEVEL,)), size=4), "a model of 4 pixels in 2 levels"),
        (pipe(SMALL, size=4), r"`codec.level_scale` is \(\), this model's lower levels have \(2.0,\)"),
    ):
        with pytest.raises(InputError, match=message):
            high.generate({"label": [1]}, seeds=[0], lower=other)
    assert load("digits", CPU).transport.cascade is None
