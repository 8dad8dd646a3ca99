"""Guidance by another model, by a classifier, and of some channels only; classifier-free: test_samplers."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import CPU

from ditkit.errors import InputError
from ditkit.pipeline import load
from ditkit.sampling import SAMPLERS, autoguidance, cfg, classifier_guidance
from ditkit.transports import transport

MEANS, STD = torch.tensor([[-2.0, 0.0], [2.0, 1.0]], dtype=torch.float64), 0.5
LABELS = {"label": torch.tensor([0, 1, 1, 0])}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean_of, rows=None):
    """The exact denoiser of N(mean_of(cond), STD² I) on straight lines; `rows` notes every call."""

    def net(x, t, cond):
        if rows is not None:
            rows.append((len(x), t[0].item()))
        mean, a, s = mean_of(cond), (1 - t)[:, None], t[:, None]
        gap = (x - a * mean) / (a**2 * STD**2 + s**2)
        return s * gap - (mean + a * STD**2 * gap)

    return transport("linear").denoiser(net)


def of_class(cond):
    return MEANS[cond["label"]]


def log_likelihoods(x, t):
    """log p(x_t | y) of both classes, but for a constant: (B, 2)."""
    a, s = (1 - t)[:, None], t[:, None]
    gap = x[:, None] - a[:, None] * MEANS
    return -(gap**2).sum(-1) / (2 * (a**2 * STD**2 + s**2))


def test_autoguidance_of_gaussians():
    """Away from the weak model's mean: the flow leads to m_weak + w (m - m_weak)."""
    weak = gaussian(lambda cond: 0.5 * MEANS[cond["label"]])
    x, grid = normal(4, 2), torch.linspace(1, 0, 201, dtype=torch.float64)
    for scale in (0.0, 1.0, 3.0):
        found = SAMPLERS["heun"].run(autoguidance(gaussian(of_class), weak, scale), x, grid, LABELS)
        expected = (0.5 + 0.5 * scale) * MEANS[LABELS["label"]] + STD * x
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-4)


def test_autoguidance_asks_the_weak_model_inside_its_interval_only():
    own, other = [], []
    guided = autoguidance(gaussian(of_class, own), gaussian(of_class, other), 2.0, (0.25, 0.75))
    SAMPLERS["euler"].run(guided, normal(4, 2), torch.linspace(1, 0, 9, dtype=torch.float64), LABELS)
    assert [rows for rows, _ in own] == [4] * 8
    assert other == [(4, t) for t in (0.75, 0.625, 0.5, 0.375, 0.25)]


def test_autoguidance_of_scale_one_is_the_denoiser_itself():
    denoise = gaussian(of_class)
    assert autoguidance(denoise, gaussian(of_class), 1.0) is denoise


def mixture():
    """The exact denoiser of both classes at once, each as likely."""
    parts = [gaussian(lambda cond, m=m: m) for m in MEANS]

    def predict(x, t, cond, at):
        share = log_likelihoods(x, t).softmax(1)
        p, q = (part(x, t, cond) for part in parts)
        one, two = share[:, :1], share[:, 1:]
        return p._replace(x0=one * p.x0 + two * q.x0, eps=one * p.eps + two * q.eps)

    return replace(parts[0], predict=predict)


def log_prob(x, t, cond):
    return log_likelihoods(x, t).log_softmax(1).gather(1, cond["label"][:, None])[:, 0]


@torch.no_grad()
def test_an_exact_classifier_turns_the_mixture_into_its_class():
    """Bayes' rule, for the whole pair; and x_t = alpha x0 + sigma eps still holds at any scale."""
    x = normal(4, 2)
    for time in (0.9, 0.5, 0.1):
        t = torch.full((4,), time, dtype=torch.float64)
        found = classifier_guidance(mixture(), log_prob, 1.0)(x, t, LABELS)
        expected = gaussian(of_class)(x, t, LABELS)
        for name in ("x0", "eps", "velocity", "score"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))
        strong = classifier_guidance(mixture(), log_prob, 4.0)(x, t, LABELS)
        torch.testing.assert_close((1 - time) * strong.x0 + time * strong.eps, x)
        assert not torch.allclose(strong.x0, found.x0)


def test_classifier_guidance_leaves_pure_noise_and_the_outside_alone():
    times = []

    def noted(x, t, cond):
        times.append(t[0].item())
        return log_prob(x, t, cond)

    guided = classifier_guidance(mixture(), noted, 2.0, (0.5, 1.0))
    x, one = normal(4, 2), torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(guided(x, one, LABELS).velocity, mixture()(x, one, LABELS).velocity)
    guided(x, 0.4 * one, LABELS)
    assert times == [1.0]
    denoise = mixture()
    assert classifier_guidance(denoise, noted, 0.0) is denoise


def test_guidance_of_the_first_channels():
    """The released code's form: the others are the conditional rows'."""

    def net(x, t, cond):
        return x + cond["label"].double()[:, None, None, None]

    denoise = transport("ddpm", predict="noise").denoiser(net)
    x, t = normal(2, 4, 3, 3), torch.full((2,), 0.5, dtype=torch.float64)
    cond = {"label": torch.tensor([1, 2])}
    guided = cfg(denoise, lambda cond: {"label": torch.zeros(2, dtype=torch.long)}, 4.0, channels=3)(
        x, t, cond
    )
    shift = (guided.eps - x)[:, :, 0, 0]
    torch.testing.assert_close(shift, torch.tensor([[4.0, 4, 4, 1], [8, 8, 8, 2]], dtype=torch.float64))
    c = guided.coeffs
    torch.testing.assert_close(c.alpha * guided.x0 + c.sigma * guided.eps, x)


@pytest.fixture(scope="module")
def pipe():
    return load("digits", CPU)


def test_a_second_snapshot_guides(pipe, tmp_path):
    """A copy of itself changes nothing; a worse one does, and the record names it."""
    how = {"sampler": "euler", "steps": 3, "guidance": 3.0}
    plain = pipe.generate({"label": [3]}, seeds=[0], **{**how, "guidance": 1.0})
    same = pipe.generate({"label": [3]}, seeds=[0], weak="digits", **how)
    assert (plain.int() - same.int()).abs().max() <= 1
    worse = load("digits", CPU)
    with torch.no_grad():
        for parameter in worse.backbone.parameters():
            parameter.mul_(0.9)
    folder = worse.save(tmp_path / "worse")
    assert not torch.equal(plain, pipe.generate({"label": [3]}, seeds=[0], weak=str(folder), **how))


def test_a_weak_model_of_another_kind_is_refused(pipe, tmp_path):
    other = load("digits", CPU)
    other.recipe = other.recipe.replace(transport={"path": "gvp"})
    folder = other.save(tmp_path / "gvp")
    with pytest.raises(InputError, match=r"`weak` .*: path gvp, .*; a weak model needs path linear"):
        pipe.generate({"label": [3]}, seeds=[0], weak=str(folder), guidance=2.0)
    with pytest.raises(InputError, match="`guidance_channels` 3"):
        pipe.generate({"label": [3]}, seeds=[0], weak="digits", guidance=2.0, guidance_channels=3)
    assert math.isfinite(
        pipe.generate({"label": [3]}, seeds=[0], guidance_channels=1, steps=1).double().mean()
    )
