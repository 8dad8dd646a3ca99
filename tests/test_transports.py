"""Transports: identities over every path and prediction, in float64, and the published numbers."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from ditkit.errors import InputError
from ditkit.layout import Layout
from ditkit.nn.embeddings import TimeEmbedding
from ditkit.transports import (
    DDPM_STEPS,
    PATHS,
    PREDICTIONS,
    TIME_LAWS,
    Transport,
    transport,
)
from ditkit.transports.paths import _ddpm_log_alpha
from ditkit.transports.variational import discretised_nll, gaussian_kl, posterior

PAIRS = list(itertools.product(PATHS, PREDICTIONS))
each_path = pytest.mark.parametrize("path", PATHS)
each_pair = pytest.mark.parametrize(("path", "predict"), PAIRS)

BETAS = np.linspace(1e-4, 2e-2, 1000)
ABAR = np.cumprod(1 - BETAS)  # index i is t = (i + 1)/1000


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def knot(*indices):
    return (f64(*indices) + 1) / DDPM_STEPS


def close(value, expected, tolerance=1e-12):
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


# Paths


@each_path
def test_ends_of_a_path(path):
    alpha, sigma = PATHS[path](f64(0.0, 1.0))[:2]
    close(alpha[0], f64(1.0)[0], 0)
    close(sigma[0], f64(0.0)[0], 0)
    at_noise = {"linear": 0.0, "gvp": 0.0, "vp": math.exp(-5.025), "ddpm": math.sqrt(ABAR[-1])}
    expected = at_noise.get(path, math.sqrt(2.4288e-9))  # published to five digits
    assert alpha[1].item() == pytest.approx(expected, rel=1e-12 if path in at_noise else 1e-4, abs=0)
    assert sigma[1].item() == pytest.approx(math.sqrt(1 - expected**2), rel=1e-12)


@pytest.mark.parametrize("path", ["gvp", "vp", "ddpm", "cosine"])
def test_variance_is_preserved(path):
    alpha, sigma = PATHS[path](torch.linspace(0, 1, 1234, dtype=torch.float64))[:2]
    close(alpha**2 + sigma**2, torch.ones_like(alpha), 1e-15)


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_derivatives_are_autograds(path):
    t = torch.linspace(1e-3, 1, 101, dtype=torch.float64, requires_grad=True)
    c = PATHS[path](t)
    close(c.d_alpha, torch.autograd.grad(c.alpha.sum(), t, retain_graph=True)[0])
    close(c.d_sigma, torch.autograd.grad(c.sigma.sum(), t)[0])


def test_derivatives_of_ddpm_between_its_knots():
    """log alpha is linear between knots, so differences about the midpoints see one formula."""
    t, h = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000, 1e-6
    c, ahead, behind = PATHS["ddpm"](t), PATHS["ddpm"](t + h), PATHS["ddpm"](t - h)
    close((ahead.alpha - behind.alpha) / (2 * h), c.d_alpha, 1e-8)
    torch.testing.assert_close((ahead.sigma - behind.sigma) / (2 * h), c.d_sigma, rtol=1e-5, atol=0)


def test_a_knot_belongs_to_the_interval_below_it():
    """Also where t·1000 is rounded upwards, in float64 and in float32."""
    index = torch.arange(1000, dtype=torch.float64)
    slope = torch.from_numpy(np.log1p(-BETAS) / 2 * 1000)  # of log alpha
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        c = PATHS["ddpm"](((index + 1) / 1000).to(dtype))
        torch.testing.assert_close((c.d_alpha / c.alpha).double(), slope, rtol=tolerance, atol=0)


def test_ddpm_knots_are_the_cumulative_product():
    alpha = PATHS["ddpm"](knot(*range(1000))).alpha
    close(alpha**2, torch.from_numpy(ABAR), 1e-14)
    abar = (alpha**2)[[0, 499, 999]].tolist()
    assert abar == pytest.approx([0.9999, 0.0785872429, 4.03583e-5], rel=1e-6)


def test_ddpm_is_not_vp():
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    gap = (PATHS["ddpm"](t).alpha - PATHS["vp"](t).alpha).abs().max().item()
    assert 5e-4 < gap < 1.05e-3


@pytest.mark.parametrize(
    ("path", "alpha", "sigma", "d_alpha", "d_sigma"),
    [
        ("linear", 0.3, 0.7, -1.0, 1.0),
        ("gvp", 0.453990500, 0.891006524, -math.pi / 2 * 0.891006524, math.pi / 2 * 0.453990500),
        ("vp", 0.084352570, 0.996435971, -0.591733280, 0.050092755),
    ],
)
def test_sit_values(path, alpha, sigma, d_alpha, d_sigma):
    """SiT's code at its t = 0.3, which is 0.7 here."""
    c = [value.item() for value in PATHS[path](f64(0.7))]
    assert c == pytest.approx([alpha, sigma, d_alpha, d_sigma], rel=2e-8)


@each_path
def test_noise_only_grows(path):
    alpha, sigma = PATHS[path](torch.linspace(0, 1, 3001, dtype=torch.float64))[:2]
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()


def test_the_kept_table_ignores_the_default_device():
    _ddpm_log_alpha.cache_clear()
    with torch.device("meta"):
        assert _ddpm_log_alpha().device.type == "cpu"


# The hub


def flat(path, predict, use, points=41):
    low, high = transport(path, predict=predict).interval(use)
    t = torch.linspace(low, high, points, dtype=torch.float64)
    return t, type(c := PATHS[path](t))(*(value[:, None] for value in c))


@pytest.mark.parametrize("use", ["train", "ode", "sde"])
@each_pair
def test_round_trip(path, predict, use):
    t, c = flat(path, predict, use)
    x0, eps = normal(len(t), 7, seed=1), normal(len(t), 7, seed=2)
    x_t = c.alpha * x0 + c.sigma * eps
    meaning = PREDICTIONS[predict]
    for found, expected in zip(meaning.decode(meaning.view(x0, eps, c), x_t, c), (x0, eps), strict=True):
        close(found, expected, 1e-10)


@each_pair
def test_denoiser_decodes_what_the_network_says(path, predict):
    """A network that knows the pair is decoded to it, and .velocity and .score are its definitions."""
    tr = transport(path, predict=predict)
    t, c = flat(path, predict, "ode")
    x0, eps = normal(len(t), 7, seed=1), normal(len(t), 7, seed=2)
    x_t = c.alpha * x0 + c.sigma * eps
    p = tr.denoiser(lambda x, t, cond: PREDICTIONS[predict].view(x0, eps, c))(x_t, t, {})
    close(p.x0, x0, 1e-10)
    close(p.eps, eps, 1e-10)
    close(p.velocity, c.d_alpha * x0 + c.d_sigma * eps, 1e-9)
    noisy = t > 0
    close(
        p.score[noisy], ((c.alpha * x0 - x_t) / c.sigma**2)[noisy], 1e-7
    )  # grad log N(x_t; alpha x0, sigma²)
    assert p.var is None
    assert p.x_t is x_t


@each_path
def test_velocity_is_the_time_derivative_of_x_t(path):
    t, h = f64(0.2345), 1e-6
    x0, eps = normal(5, seed=1), normal(5, seed=2)
    x = [c.alpha * x0 + c.sigma * eps for c in (PATHS[path](t - h), PATHS[path](t + h))]
    close(PREDICTIONS["velocity"].view(x0, eps, PATHS[path](t)), (x[1] - x[0]) / (2 * h), 1e-7)


def test_v_is_not_the_velocity_but_on_gvp_proportional_to_it():
    x0, eps, c = normal(5, seed=1), normal(5, seed=2), PATHS["gvp"](f64(0.3))
    v, velocity = (PREDICTIONS[name].view(x0, eps, c) for name in ("v", "velocity"))
    close(velocity, v * math.pi / 2)


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_narrow_outputs_are_decoded_in_the_states_precision(predict):
    x, t = normal(3, 4, dtype=torch.float32), torch.full((3,), 0.5)
    p = transport("linear", predict=predict).denoiser(lambda x, t, cond: x.bfloat16())(x, t, {})
    assert p.x0.dtype == p.eps.dtype == torch.float32


# Times


@each_pair
def test_training_times_stay_inside(path, predict):
    u = torch.linspace(1e-12, 1, 5001, dtype=torch.float64)
    low, high = transport(path, predict=predict).interval("train")
    for law in TIME_LAWS:
        t = transport(path, predict=predict, time_law=law).times(u)
        assert low <= t.min()
        assert t.max() <= high
        assert (t.diff() >= 0).all()
        if PATHS[path].knots:
            assert set(t.tolist()) <= set(knot(*range(1000)).tolist())
        else:
            assert (t.diff() > 0).all()
            middle = transport(path, predict=predict, time_law=law).times(f64(0.5)).item()
            assert middle == pytest.approx((low + high) / 2, abs=1e-12)


def test_uniform_times_visit_every_knot_equally():
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    index = (transport("ddpm").times(u) * 1000).round().long() - 1
    assert index.bincount(minlength=1000).tolist() == [10] * 1000


def test_logit_normal_quartiles():
    """The logit of t is a standard normal, whose quartiles are at ±0.6744898."""
    t = TIME_LAWS["logit_normal"](f64(0.25, 0.5, 0.75))
    close(t.logit(), f64(-0.6744897501960817, 0, 0.6744897501960817))


def test_logit_normal_with_settings():
    """Of a mean and a spread the quartiles are at mean ± 0.6744898 spread; as it is without them they are 0 and 1, to the bit."""
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    t = transport(time_law="logit_normal:mean=0.8,spread=0.5").times(f64(0.25, 0.5, 0.75))
    close(t.logit(), 0.8 + 0.5 * f64(-0.6744897501960817, 0, 0.6744897501960817))
    plain = torch.special.ndtri(u).sigmoid()
    assert transport(time_law="logit_normal").times(u).equal(plain)
    assert transport(time_law="logit_normal:mean=0,spread=1").times(u).equal(plain)
    assert transport(time_law="logit_normal:mean=-9,spread=9").times(u).isfinite().all()


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ("logit_normal:spread=0", "spread: Input should be greater than 0"),
        ("logit_normal:mean=inf", "mean: Input should be a finite number"),
        ("logit_normal:std=1", "unknown 'std'"),
        ("uniform:mean=1", "uniform has no settings"),
    ],
)
def test_laws_with_wrong_settings_are_refused_in_one_line(law, message):
    with pytest.raises(InputError, match="time_law: ") as caught:
        transport(time_law=law)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dit_reads_whole_indices():
    """t = (i + 1)/1000 is i for the network, exactly, in float32 for every knot."""
    clock = TimeEmbedding(8, 1000.0, -1.0)
    clock.mlp = nn.Identity()
    seen = clock(transport("ddpm").times((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000))
    torch.testing.assert_close(seen[:, 0], torch.arange(1000.0).cos(), rtol=0, atol=0)


def test_sits_safe_intervals():
    """SiT's check_interval, in the time that runs the other way."""
    assert transport("linear").interval("train") == (0.0, 1.0)
    assert transport("gvp", predict="score").interval("train") == (1e-3, 1 - 1e-3)
    assert transport("linear", predict="data").interval("ode") == (1e-3, 1.0)
    assert transport("vp", predict="noise").interval("train") == (1e-5, 1.0)
    assert transport("vp").interval("ode") == (1e-3, 1.0)
    assert transport("linear").interval("sde") == (0.04, 1.0)
    assert transport("ddpm", predict="noise").interval("train") == (1e-3, 1.0)


# One reverse step


def coefficients_of_ddpm(abar):
    """Ho et al. (2020), equations 6-7, from the cumulative products of any process."""
    before = np.append(1.0, abar[:-1])
    beta = 1 - abar / before
    return {
        "x0_weight": np.sqrt(before) * beta / (1 - abar),
        "x_weight": np.sqrt(1 - beta) * (1 - before) / (1 - abar),
        "log_small": beta * (1 - before) / (1 - abar),
        "log_large": beta,
    }


@pytest.mark.parametrize("kept", [range(1000), range(0, 1000, 20), [0, 3, 4, 500, 999]])
def test_posterior_is_ddpms(kept):
    kept = list(kept)
    t = knot(*kept)
    step = posterior(PATHS["ddpm"](t), PATHS["ddpm"](torch.cat([f64(0.0), t[:-1]])))
    expected = coefficients_of_ddpm(ABAR[kept])
    for name, value in expected.items():
        found = getattr(step, name)
        torch.testing.assert_close(
            found.exp() if name.startswith("log") else found, torch.from_numpy(value), rtol=1e-9, atol=1e-15
        )


@each_path
def test_posterior_composes_to_the_marginal(path):
    """x_a from q(x_a | x0), then x_b from q(x_b | x_a, x0), is distributed as q(x_b | x0)."""
    a, b = PATHS[path](f64(0.8)), PATHS[path](f64(0.55))
    step = posterior(a, b)
    close(step.x0_weight + step.x_weight * a.alpha, b.alpha)
    close(step.x_weight**2 * a.sigma**2 + step.log_small.exp(), b.sigma**2)
    x0, x_a = normal(3, seed=1), normal(3, seed=2)
    close(step.mean(x0, x_a), step.x0_weight * x0 + step.x_weight * x_a)


def test_kl_of_gaussians():
    ours = gaussian_kl(f64(0.3), f64(0.5), f64(-0.2), f64(-0.7))
    p, q = (torch.distributions.Normal(m, math.exp(v / 2)) for m, v in ((f64(0.3), 0.5), (f64(-0.2), -0.7)))
    close(ours, torch.distributions.kl_divergence(p, q))


def test_bins_of_the_likelihood_hold_all_mass():
    """256 bins of 8-bit values partition the line, so their masses sum to 1; inside, as the exact CDF."""
    pixels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean, log_var = f64(0.4), f64(-4.0)
    mass = (-discretised_nll(pixels, mean, log_var)).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-9)
    normal_ = torch.distributions.Normal(mean, (log_var / 2).exp())
    exact = normal_.cdf(pixels + 1 / 255) - normal_.cdf(pixels - 1 / 255)
    inner = slice(150, 210)
    torch.testing.assert_close(mass[inner], exact[inner], rtol=0.02, atol=0)


# Losses


class Small(nn.Module):
    """A random network that looks at everything: (B, 2, 4, 4), t (B,) -> (B, outputs, 4, 4)."""

    def __init__(self, outputs=2, dtype=torch.float32, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 8, 3, padding=1, dtype=dtype)
            self.last = nn.Conv2d(8, outputs, 3, padding=1, dtype=dtype)

    def forward(self, x, t, cond):
        clock = t.to(x)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        return self.last(torch.tanh(self.conv(torch.cat([x, clock], 1))))


HYBRID = Transport(path="ddpm", predict="noise", variance="learned")


@each_pair
def test_loss_compares_the_raw_output_with_its_target(path, predict):
    tr = transport(path, predict=predict)
    x0, eps = normal(3, 2, 4, 4, seed=1), normal(3, 2, 4, 4, seed=2)
    t = tr.times(f64(0.2, 0.5, 0.9))
    c = type(k := PATHS[path](t))(*(value[:, None, None, None] for value in k))
    target = {
        "velocity": c.d_alpha * x0 + c.d_sigma * eps,
        "noise": eps,
        "data": x0,
        "score": -eps / c.sigma,
        "v": c.alpha * eps - c.sigma * x0,
    }[predict]
    weight = c.sigma**2 if predict == "score" else 1.0
    out = normal(3, 2, 4, 4, seed=3)
    seen = {}

    def net(x, t, cond):
        seen.update(x=x, t=t, cond=cond)
        return out

    cond = {"label": torch.tensor([0, 1, 2])}
    terms = tr.losses(net, x0, cond, t=t, eps=eps)
    close(terms["loss"], (weight * (out - target) ** 2).mean((1, 2, 3)), 1e-10)
    assert terms["loss"] is terms["mse"]
    close(seen["x"], c.alpha * x0 + c.sigma * eps)
    assert seen["t"].equal(t)
    assert seen["cond"] is cond


@each_pair
def test_loss_of_a_perfect_network_is_zero(path, predict):
    tr = transport(path, predict=predict)
    x0, eps, t = normal(3, 2, seed=1), normal(3, 2, seed=2), tr.times(f64(0.1, 0.5, 0.9))
    c = type(k := PATHS[path](t))(*(value[:, None] for value in k))
    loss = tr.losses(lambda x, t, cond: PREDICTIONS[predict].view(x0, eps, c), x0, {}, t=t, eps=eps)["loss"]
    assert loss.max().item() < 1e-20


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("predict", ["score", "noise"])
def test_the_velocitys_loss_is_that_of_the_decoded_velocity(path, predict):
    tr, flow = transport(path, predict=predict, loss="velocity"), transport(path, predict="velocity")
    x0, eps, out = normal(3, 2, seed=1), normal(3, 2, seed=2), normal(3, 2, seed=3)
    t = tr.times(f64(0.1, 0.5, 0.9))
    loss = tr.losses(lambda x, t, cond: out, x0, {}, t=t, eps=eps)["loss"]
    decoded = flow.losses(
        lambda x, t, cond: tr.denoiser(lambda *_: out)(x, t, cond).velocity, x0, {}, t=t, eps=eps
    )["loss"]
    close(loss, decoded, 1e-6)


def test_the_likelihoods_loss_is_between_the_outputs_and_the_velocitys():
    """1, V/sigma², (V/sigma)²: on the linear path 1, 1/(t (1 - t)), 1/(1 - t)² at our t."""
    x0, eps, t = normal(1, 2, seed=1), normal(1, 2, seed=2), f64(0.2)
    losses = [
        transport("linear", predict="score", loss=loss).losses(
            lambda x, t, cond: torch.zeros_like(x), x0, {}, t=t, eps=eps
        )["loss"]
        for loss in ("output", "velocity", "likelihood")
    ]
    close(losses[1] / losses[0], f64(1 / 0.8**2))
    close(losses[2] / losses[0], f64(1 / (0.2 * 0.8)))


@pytest.mark.parametrize("tr", [HYBRID, transport("gvp"), transport("vp", predict="score")], ids=str)
def test_loss_of_an_image_is_its_own(tr):
    net = Small(4 if tr.variance == "learned" else 2, torch.float64)
    x0, eps = normal(4, 2, 4, 4, seed=1).tanh(), normal(4, 2, 4, 4, seed=2)
    t, order = tr.times(f64(1e-4, 0.3, 0.6, 1.0)), [2, 0, 3, 1]
    together = tr.losses(net, x0, {}, t=t, eps=eps)
    shuffled = tr.losses(net, x0[order], {}, t=t[order], eps=eps[order])
    alone = [tr.losses(net, x0[i : i + 1], {}, t=t[i : i + 1], eps=eps[i : i + 1]) for i in range(4)]
    for name, value in together.items():
        assert value.shape == (4,)
        close(shuffled[name], value[order])
        close(torch.cat([terms[name] for terms in alone]), value)


def test_the_bound_trains_the_variance_only():
    x0, eps = normal(3, 2, 4, 4, seed=1).tanh(), normal(3, 2, 4, 4, seed=2)
    out = (0.3 * normal(3, 4, 4, 4, seed=3)).requires_grad_()
    terms = HYBRID.losses(lambda x, t, cond: out, x0, {}, t=knot(0, 1, 700), eps=eps)
    (of_vb,) = torch.autograd.grad(terms["vb"].sum(), out, retain_graph=True)
    (of_mse,) = torch.autograd.grad(terms["mse"].sum(), out, retain_graph=True)
    assert of_vb[:, :2].abs().max() == 0
    assert (of_vb[:, 2:].abs().amax((1, 2, 3)) > 0).all()
    assert of_mse[:, 2:].abs().max() == 0
    close(terms["loss"], terms["mse"] + terms["vb"])


def test_the_bound_is_the_kl_to_the_true_posterior():
    """A right prediction of the noise and a variance at either end: KL of two zero-mean-gap Gaussians."""
    x0, eps = normal(1, 1, 1, 4, seed=1), normal(1, 1, 1, 4, seed=2)
    expected = coefficients_of_ddpm(ABAR)
    small, large = (np.log(expected[name][500]) for name in ("log_small", "log_large"))
    for end, log_var in ((-1.0, small), (1.0, large), (0.0, (small + large) / 2)):
        out = torch.cat([eps, torch.full_like(eps, end)], 1)
        vb = HYBRID.losses(lambda x, t, cond, out=out: out, x0, {}, t=knot(500), eps=eps)["vb"]
        kl = (log_var - small - 1 + math.exp(small - log_var)) / 2 / math.log(2)
        assert vb.item() == pytest.approx(kl, abs=1e-12, rel=1e-6)


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_learned_variance_needs_ddpm(path):
    with pytest.raises(InputError, match=f"^transport: .*ddpm or cosine, not {path}; use variance fixed"):
        transport(path, variance="learned")


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("cubic", {}, "transport: path: unknown 'cubic'; there are linear, gvp, vp, ddpm, cosine$"),
        ("linear", {"predict": "nose"}, "transport: predict: unknown 'nose'; did you mean noise.$"),
        ("linear", {"prediction": "v"}, "transport: unknown 'prediction'; did you mean predict"),
    ],
)
def test_unknown_words(path, fields, message):
    with pytest.raises(InputError, match=message):
        transport(path, **fields)


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("tr", [*(transport(a, predict=b) for a, b in PAIRS), HYBRID], ids=str)
def test_gradients_are_finite_at_the_ends(tr, end):
    """In float32, at the first and last time of training, for every parameter."""
    net = Small(4 if tr.variance == "learned" else 2)
    x0, eps = normal(2, 2, 4, 4, seed=1, dtype=torch.float32).clamp(-1, 1), normal(2, 2, 4, 4, seed=2).float()
    t = torch.full((2,), tr.interval("train")[end], dtype=torch.float64)
    tr.losses(net, x0, {}, t=t, eps=eps)["loss"].sum().backward()
    for parameter in net.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0
        assert parameter.grad.abs().max() < 1e5


# States of several parts


class Halves(Layout):
    """A flat state (B, N) whose first and second half have their own time."""

    def expand(self, values):
        values = values[:, None].expand(-1, 2) if values.ndim == 1 else values
        return values.repeat_interleave(self.shape[0] // 2, dim=1)

    def mean(self, x):
        return x.unflatten(1, (2, -1)).mean(2)


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_two_parts_are_two_states(predict):
    """Loss and denoiser of a state of two parts, each at its own time, are those of the parts apart."""
    tr, layout = transport("vp", predict=predict), Halves((6,), 2)
    x0, eps, t = normal(4, 6, seed=1), normal(4, 6, seed=2), tr.times(normal(4, 2, seed=3).sigmoid())

    def net(x, t, cond):
        return torch.tanh(2 * x)

    whole = tr.losses(net, x0, {}, t=t, eps=eps, layout=layout)["loss"]
    halves = [slice(0, 3), slice(3, 6)]
    parts = [tr.losses(net, x0[:, h], {}, t=t[:, k], eps=eps[:, h])["loss"] for k, h in enumerate(halves)]
    assert whole.shape == (4,)
    close(whole, parts[0] + parts[1])

    p = tr.denoiser(net, layout)(x0, t, {})
    for k, h in enumerate(halves):
        alone = tr.denoiser(net)(x0[:, h], t[:, k], {})
        close(p.x0[:, h], alone.x0)
        close(p.velocity[:, h], alone.velocity)


def test_one_time_for_two_parts():
    layout = Halves((6,), 2)
    t = f64(0.2, 0.7)
    denoise = transport("linear").denoiser(lambda x, t, cond: x, layout)
    close(denoise.coeffs(t, torch.zeros(2, 6, dtype=torch.float64)).sigma, t[:, None].expand(2, 6))


def test_layout_of_one_part():
    layout = Layout((2, 3, 4))
    x = normal(5, 2, 3, 4)
    assert layout.parts == 1
    assert (
        layout.expand(torch.arange(5)).shape == layout.expand(torch.arange(5)[:, None]).shape == (5, 1, 1, 1)
    )
    close(layout.mean(x), x.mean((1, 2, 3))[:, None])
