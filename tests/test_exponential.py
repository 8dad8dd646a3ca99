"""Exponential integrators: their integrals, what they are exact for, and the orders that can be fitted."""

import math

import pytest
import torch
from test_samplers import errors

from ditkit.sampling import SAMPLERS
from ditkit.sampling import deis as deis_module
from ditkit.sampling.exponential import integrals, log_ratio
from ditkit.sampling.solver import Step
from ditkit.transports import PATHS, Denoiser, Prediction


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


def denoiser(path, x0=None, eps=None):
    """Of a network that knows the data, or the noise, as a function of t alone."""

    def answer(x, t, cond, at):
        c = PATHS[path](t)
        c = type(c)(*(value[:, None] for value in c))
        if x0 is not None:
            found = x0(t)[:, None].expand_as(x)
            return Prediction(c, x, found, (x - c.alpha * found) / c.sigma)
        found = eps(t)[:, None].expand_as(x)
        return Prediction(c, x, (x - c.sigma * found) / c.alpha, found)

    return Denoiser(answer, PATHS[path])


def ratio(path, t):
    c = PATHS[path](t)
    return (c.alpha / c.sigma).log()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_integrals_are_those_of_the_polynomials(count):
    h, nodes = f64(0.7), [f64(value) for value in (0.0, -0.4, 0.7, -1.1)][:count]
    u = torch.linspace(0, 0.7, 20_001, dtype=torch.float64)
    for power in range(count):
        total = sum(w * node**power for w, node in zip(integrals(h, nodes), nodes, strict=True))
        expected = torch.trapezoid(torch.exp(u - h) * u**power, u)
        torch.testing.assert_close(total, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("path", ["linear", "gvp", "vp", "ddpm"])
def test_unipc_is_exact_for_data_that_is_linear_in_the_log_ratio(path):
    """The first step is not, and is corrected by the second evaluation."""
    grid = torch.linspace(0.9, 0.2, 6, dtype=torch.float64)
    slope, at_0 = 0.3, 1.2
    found = SAMPLERS["unipc"].run(
        denoiser(path, x0=lambda t: at_0 + slope * ratio(path, t)), torch.ones(1, 1).double(), grid, {}
    )
    a, b = PATHS[path](grid[0]), PATHS[path](grid[-1])
    start, end = ratio(path, grid[0]), ratio(path, grid[-1])
    l = torch.linspace(start.item(), end.item(), 200_001, dtype=torch.float64)  # noqa: E741
    integral = torch.trapezoid(torch.exp(l) * (at_0 + slope * l), l)
    torch.testing.assert_close(found.squeeze(), b.sigma / a.sigma + b.sigma * integral, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_unipc_is_of_third_order_and_better(path):
    coarse, fine = errors("unipc", path, (160, 320), 0.01)
    assert 2.8 < math.log2(coarse / fine) < 4.2


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_deis_is_exact_for_noise_that_is_quadratic_in_time(path):
    """Once it knows three estimates."""
    eps = lambda t: 0.4 - t + 0.7 * t**2  # noqa: E731
    times = (f64(0.6), f64(0.75), f64(0.8))
    past = deis_module.Past(times[1:], tuple(eps(t).view(1, 1) for t in times[1:]))
    step = Step(denoiser(path, eps=eps), {}, times[0], f64(0.45), index=2)
    found, known = SAMPLERS["deis"].step(step, torch.ones(1, 1).double(), past)
    t = torch.linspace(0.6, 0.45, 100_001, dtype=torch.float64)
    c = PATHS[path](t)
    r = c.sigma / c.alpha
    integral = torch.trapezoid(eps(t), r)
    expected = c.alpha[-1] * (1 / c.alpha[0] + integral)
    torch.testing.assert_close(found.squeeze(), expected, rtol=1e-7, atol=1e-9)
    assert [len(part) for part in known] == [3, 3]


def test_deis_is_of_second_order_with_a_first_step_of_euler_s_and_third_but_for_it():
    coarse, fine = errors("deis", "linear", (160, 320), 0.01)
    assert 1.9 < math.log2(coarse / fine) < 3.2
    assert fine < errors("ddim", "linear", (320,), 0.01)[0] / 100


def test_the_sde_keeps_the_variance():
    """Where the data is known, x_s is normal around it with the variance of its time, in steps of any size."""
    denoise = denoiser("linear", x0=lambda t: torch.full_like(t, 2.0))
    start = torch.randn(4_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, middle = f64(0.9), f64(0.35)
    x = 0.1 * 2.0 + 0.9 * start
    noise = torch.randn(4_000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, _ = SAMPLERS["sde_dpmpp_2m"].step(Step(denoise, {}, t, middle, draw=lambda x: noise), x, None)
    shrunk = 0.35 * 0.1 / (0.65 * 0.9)
    parts = 0.35 * shrunk * start, 0.35 * (1 - shrunk**2) ** 0.5 * noise
    torch.testing.assert_close(found, 0.65 * 2.0 + sum(parts))
    last = Step(denoise, {}, middle, f64(0.0), last=True)
    torch.testing.assert_close(SAMPLERS["sde_dpmpp_2m"].step(last, found, None)[0], torch.full_like(x, 2.0))


def test_from_pure_noise_to_clean_data():
    """Both ends, where the log ratio has no bounds."""
    grid = torch.linspace(1, 0, 6, dtype=torch.float64)
    denoise = denoiser("linear", x0=lambda t: 1 + t)
    for name in ("unipc", "deis", "sde_dpmpp_2m"):
        x = torch.full((2, 1), 0.5, dtype=torch.float64)
        found = SAMPLERS[name].run(_from_noise(denoise), x, grid, {}, noise=torch.zeros_like)
        assert found.isfinite().all(), name
    step = Step(denoise, {}, f64(1.0), f64(0.5))
    assert log_ratio(step, f64(1.0)) == -20


def _from_noise(denoise):
    """At t = 1 the noise is the state."""

    def answer(x, t, cond, at):
        found = denoise(x, t.clamp(max=1 - 1e-12), cond, at)
        return found._replace(coeffs=type(found.coeffs)(*(value[:, None] for value in PATHS["linear"](t))))

    return Denoiser(answer, PATHS["linear"])
