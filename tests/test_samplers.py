"""Samplers, grids and guidance against a mixture of Gaussians whose exact denoiser is known.

The state is a point of the plane, in float64. With x0 ~ sum_k w_k N(m_k, diag(s_k²)) the posterior
mean of (x0, eps) given x_t is in closed form on any path, so a solver's error is all its own.
"""

import itertools
import math
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from ditkit.backbones import backbone
from ditkit.errors import InputError
from ditkit.layout import Layout
from ditkit.randomness import RowNoise
from ditkit.sampling import DIFFUSIONS, SAMPLERS, Solver, cfg, respaced, time_grid
from ditkit.sampling.config import SamplingConfig, SamplingRequest
from ditkit.sampling.grids import SPACINGS
from ditkit.sampling.sde import coefficient, kl_eta
from ditkit.transports import PATHS, PREDICTIONS, transport


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def source(seed):
    stream = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=stream, dtype=x.dtype)


class Mixture:
    """A mixture in the plane, and the network that knows it."""

    weights, means, stds = f64([0.3, 0.7]), f64([[-1.5, 0.5], [1.0, -0.5]]), f64([[0.3, 0.5], [0.4, 0.2]])

    def pair(self, x, c):
        """E[x0 | x_t] and E[eps | x_t], without dividing by sigma."""
        gap = x[:, None] - c.alpha[:, None] * self.means  # (B, k, 2)
        variance = c.alpha[:, None] ** 2 * self.stds**2 + c.sigma[:, None] ** 2
        share = (self.weights.log() - (gap**2 / variance + variance.log()).sum(-1) / 2).softmax(-1)[..., None]
        x0 = (share * (self.means + c.alpha[:, None] * self.stds**2 / variance * gap)).sum(1)
        return x0, (share * c.sigma[:, None] / variance * gap).sum(1)

    def network(self, path, predict):
        def net(x, t, cond):
            c = type(k := PATHS[path](t))(*(value[:, None] for value in k))
            return PREDICTIONS[predict].view(*self.pair(x, c), c)

        return net

    def denoiser(self, path, predict):
        return transport(path, predict=predict).denoiser(self.network(path, predict))

    @property
    def mean(self):
        return self.weights @ self.means

    @property
    def covariance(self):
        second = torch.einsum("k,ki,kj->ij", self.weights, self.means, self.means)
        return second + torch.diag(self.weights @ self.stds**2) - torch.outer(self.mean, self.mean)


MIXTURE = Mixture()


def gaps(x):
    """How far the samples are from the mixture: worst component of mean, of covariance, and weight of a mode."""
    nearest = torch.cdist(x, MIXTURE.means).argmin(1)
    return (
        (x.mean(0) - MIXTURE.mean).abs().max().item(),
        (x.T.cov() - MIXTURE.covariance).abs().max().item(),
        abs((nearest == 0).double().mean().item() - MIXTURE.weights[0].item()),
    )


STANDARD_ERRORS = {
    "mean": 1.205,
    "covariance": 1.365,
    "weight": 0.458,
}  # of one sample, in the worst component


def test_the_mixtures_own_samples():
    """The measure itself, and the posterior against a Monte-Carlo average of it."""
    g = torch.Generator().manual_seed(0)
    mode = torch.multinomial(MIXTURE.weights, 200_000, True, generator=g)
    x0 = MIXTURE.means[mode] + MIXTURE.stds[mode] * normal(200_000, 2, seed=1)
    measured = {
        "mean": x0.std(0).max(),
        "covariance": ((x0 - MIXTURE.mean)[:, :, None] * (x0 - MIXTURE.mean)[:, None]).std(0).max(),
        "weight": (mode == 0).double().std(),
    }
    assert {key: value.item() for key, value in measured.items()} == pytest.approx(STANDARD_ERRORS, rel=0.01)
    for gap, error in zip(gaps(x0), STANDARD_ERRORS.values(), strict=True):
        assert gap < 4 * error / 200_000**0.5
    eps, c = normal(200_000, 2, seed=2), PATHS["vp"](f64([0.3] * 200_000))
    x_t = c.alpha[:, None] * x0 + c.sigma[:, None] * eps
    x0_hat, eps_hat = MIXTURE.pair(x_t, type(c)(*(value[:, None] for value in c)))
    for truth, estimate in ((x0, x0_hat), (eps, eps_hat)):  # E[(x0 - E[x0 | x_t]) f(x_t)] = 0 for any f
        for f in (torch.ones_like(x_t), x_t, x_t.sin()):
            assert ((truth - estimate) * f).mean(0).abs().max().item() < 0.01


# Orders of convergence


@lru_cache
def fine_solution(path, low):
    """Of the ODE from t = 0.99 to `low`, for 64 starts."""
    fine = torch.linspace(0.99, low, 1281, dtype=torch.float64)
    return SAMPLERS["heun"].run(MIXTURE.denoiser(path, "noise"), normal(64, 2, seed=3), fine, {})


def errors(sampler, path, steps, low):
    """Mean distance to the fine solution."""
    x, denoise, limit = normal(64, 2, seed=3), MIXTURE.denoiser(path, "noise"), fine_solution(path, low)
    grids = (torch.linspace(0.99, low, n + 1, dtype=torch.float64) for n in steps)
    return [(SAMPLERS[sampler].run(denoise, x, grid, {}) - limit).norm(dim=1).mean().item() for grid in grids]


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
@pytest.mark.parametrize(
    ("sampler", "order"), [("euler", 1), ("heun", 2), ("ab2", 2), ("ddim", 1), ("dpmpp_2m", 2)]
)
def test_order_of_convergence(sampler, order, path):
    """Halving the step divides the error by 2^order. DDIM has the limit of the ODE and order 1."""
    coarse, fine = errors(sampler, path, (80, 160), 0.01)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)
    assert fine < (0.02 if order == 1 else 3e-3)


@pytest.mark.parametrize("sampler", ["ab2", "dpmpp_2m"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_order_two_on_every_grid(spacing, sampler):
    """Steps of changing size: extrapolation must use the sizes."""
    x, tr, denoise = normal(64, 2, seed=3), transport("gvp"), MIXTURE.denoiser("gvp", "noise")
    limit = fine_solution("gvp", 0.01)
    coarse, fine = (
        (SAMPLERS[sampler].run(denoise, x, SPACINGS[spacing](tr, 0.99, 0.01, n), {}) - limit)
        .norm(dim=1)
        .mean()
        for n in (80, 160)
    )
    assert math.log2(coarse / fine) > 1.7
    assert fine < 1e-2


def test_dopri5_meets_its_tolerance():
    """Errors fall with the tolerance, by more evaluations; each image is solved as if alone."""
    x, grid = normal(64, 2, seed=3)[:3], torch.linspace(0.99, 0.01, 2, dtype=torch.float64)
    denoise, limit = MIXTURE.denoiser("gvp", "noise"), fine_solution("gvp", 0.01)[:3]
    found = []
    for tolerance in (1e-3, 1e-6):
        calls = []

        def counted(x, t, cond, at, calls=calls):
            assert len(x) == 1
            assert 0.01 <= t.item() <= 0.99  # the solver looks further, the network does not
            calls.append(t)
            return denoise(x, t, cond)

        y = SAMPLERS["dopri5"].run(replace(denoise, predict=counted), x, grid, {}, tolerance=tolerance)
        found.append(((y - limit).abs().max().item(), len(calls)))
    assert found[0][0] < 0.05
    assert found[1][0] < 5e-5
    assert found[1][1] > 2 * found[0][1]
    alone = SAMPLERS["dopri5"].run(denoise, x[1:2], grid, {}, tolerance=1e-6)
    torch.testing.assert_close(alone, y[1:2], rtol=0, atol=0)


def test_ddim_with_noise():
    """eta = 1 is the ancestral sampler where sigma² + alpha² = 1; between, the marginals are kept."""
    grid, denoise = f64([0.9, 0.6, 0.3, 0.0]), MIXTURE.denoiser("gvp", "velocity")
    x = normal(16, 2)
    ancestral = SAMPLERS["ancestral"].run(denoise, x, grid, {}, noise=source(1))
    torch.testing.assert_close(
        SAMPLERS["ddim"].run(denoise, x, grid, {}, noise=source(1), eta=1.0), ancestral
    )
    tr = transport("linear")
    half = SAMPLERS["ddim"].run(
        MIXTURE.denoiser("linear", "velocity"), normal(4000, 2), time_grid(tr, "jump", 80), {},
        noise=source(2), eta=0.5,
    )  # fmt: skip
    for gap, error in zip(gaps(half), STANDARD_ERRORS.values(), strict=True):
        assert gap < 4 * error / 4000**0.5 + 0.02


def test_ddim_is_euler_on_straight_lines():
    x, grid = normal(64, 2), torch.linspace(1, 0, 8, dtype=torch.float64)
    denoise = MIXTURE.denoiser("linear", "velocity")
    one, other = (SAMPLERS[name].run(denoise, x, grid, {}) for name in ("ddim", "euler"))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampler", ["euler", "heun", "ab2", "ddim", "dpmpp_2m"])
def test_what_is_predicted_does_not_matter(sampler):
    """The hub: the same pair, so the same samples to rounding. But for Heun's last step where data is predicted."""
    x, grid = normal(16, 2), torch.linspace(0.99, 0.01, 11, dtype=torch.float64)
    kinds = [kind for kind in PREDICTIONS if (sampler, kind) != ("heun", "data")]
    first, *others = (SAMPLERS[sampler].run(MIXTURE.denoiser("gvp", kind), x, grid, {}) for kind in kinds)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", ["euler", "heun", "ab2", "ddim", "dpmpp_2m"])
def test_errors_of_predicted_data_are_not_divided_by_the_last_time(sampler):
    """A network that is wrong by 0.01, anew at every time, makes samples that are wrong by a few times that."""
    tr, exact = transport("linear", predict="data"), MIXTURE.network("linear", "data")

    def wrong(x, t, cond):
        return exact(x, t, cond) + 0.01 * normal(*x.shape, seed=int(t[0] * 1e6))

    run, use = SAMPLERS[sampler].run, SAMPLERS[sampler].use
    x, grid = normal(200, 2), time_grid(tr, use, 25)
    made, expected = (run(tr.denoiser(net), x, grid, {}) for net in (wrong, exact))
    assert (made - expected).square().mean().sqrt().item() < 0.08


def test_heun_asks_once_in_the_last_step_where_data_is_predicted():
    tr, chosen, times = transport("linear", predict="data"), SamplingConfig(sampler="heun", steps=4), []

    def counted(x, t, cond):
        times.append(t[0].item())
        return x

    grid = chosen.times(tr)
    chosen.run(tr.denoiser(counted), normal(2, 2), grid, {})
    points = grid.tolist()
    assert times == sorted(points[:-1] + points[1:-1], reverse=True)
    assert len(times) == chosen.nfe(grid, tr)


# Distributions


@pytest.mark.parametrize("path", ["linear", "vp"])
@pytest.mark.parametrize("sampler", ["euler_maruyama", "ancestral"])
def test_stochastic_samplers_keep_the_marginals(sampler, path):
    """20,000 samples in 300 steps: within four standard errors of the worst component, and 0.01 for the steps."""
    tr = transport(path, predict="noise" if path == "vp" else "velocity")
    run, use = SAMPLERS[sampler].run, SAMPLERS[sampler].use
    x = run(
        MIXTURE.denoiser(path, tr.predict),
        normal(20_000, 2, seed=5),
        time_grid(tr, use, 300),
        {},
        noise=source(6),
    )
    mean, covariance, weight = gaps(x)
    assert mean < 4 * STANDARD_ERRORS["mean"] / 20_000**0.5 + 0.01
    assert covariance < 4 * STANDARD_ERRORS["covariance"] / 20_000**0.5 + 0.01
    assert weight < 4 * STANDARD_ERRORS["weight"] / 20_000**0.5 + 0.01


@pytest.mark.parametrize("path", PATHS)
def test_one_step_of_the_sde(path):
    """x - h (velocity - sigma score) + sqrt(2 sigma h) z; the last step without z."""
    denoise, x, z = MIXTURE.denoiser(path, "noise"), normal(5, 2), normal(5, 2, seed=1)
    grid, states = f64([0.8, 0.5, 0.2]), []

    def noise(x):
        states.append(x)
        return z

    found = SAMPLERS["euler_maruyama"].run(denoise, x, grid, {}, noise=noise)
    for i, (t, h) in enumerate(((0.8, 0.3), (0.5, 0.3))):
        p = denoise(x, torch.full((5,), t, dtype=torch.float64), {})
        sigma = PATHS[path](f64(t)).sigma
        x = x - h * (p.velocity - sigma * p.score) + (2 * sigma * h).sqrt() * z * (i == 0)
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)
    assert len(states) == 1


STOCHASTIC = ("ancestral", "euler_maruyama", "sde_heun", "sde_dpmpp_2m")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_of_noise(sampler):
    """One for each step but the last, or none: a seed's stream is used the same way in every version."""
    run, use = SAMPLERS[sampler].run, SAMPLERS[sampler].use
    drawn = []
    run(
        MIXTURE.denoiser("linear", "velocity"),
        normal(3, 2),
        time_grid(transport("linear"), use, 6),
        {},
        noise=lambda x: drawn.append(x.shape) or torch.zeros_like(x),
    )
    assert drawn == [(3, 2)] * (5 if sampler in STOCHASTIC else 0)


def test_the_noise_of_a_stochastic_sampler_is_used():
    """Half the noise in every step would be seen: the covariance shrinks."""
    tr = transport("linear")
    for name in ("euler_maruyama", "ancestral"):
        run, use = SAMPLERS[name].run, SAMPLERS[name].use
        noise = source(6)
        x = run(
            MIXTURE.denoiser("linear", "velocity"),
            normal(4000, 2, seed=5),
            time_grid(tr, use, 60),
            {},
            noise=lambda x, noise=noise: noise(x) / 2,
        )
        assert max(gaps(x)) > 0.15


@pytest.mark.parametrize(("path", "predict"), itertools.product(PATHS, PREDICTIONS))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_on_every_transport(sampler, path, predict):
    """2,000 samples on the default grid of 60 steps: within four standard errors, and 0.03 for the steps."""
    run, use = SAMPLERS[sampler].run, SAMPLERS[sampler].use
    grid = time_grid(transport(path, predict=predict), use, 60)
    if sampler == "dopri5":  # one by one: too slow for statistics
        x, denoise = normal(1, 2, seed=7), MIXTURE.denoiser(path, predict)
        expected = SAMPLERS["heun"].run(denoise, x, grid, {})
        torch.testing.assert_close(run(denoise, x, grid, {}), expected, rtol=0, atol=0.02)
        return
    x = run(MIXTURE.denoiser(path, predict), normal(2000, 2, seed=7), grid, {}, noise=source(8))
    mean, covariance, weight = gaps(x)
    assert mean < 4 * STANDARD_ERRORS["mean"] / 2000**0.5 + 0.03
    assert covariance < 4 * STANDARD_ERRORS["covariance"] / 2000**0.5 + 0.03
    assert weight < 4 * STANDARD_ERRORS["weight"] / 2000**0.5 + 0.03


@pytest.mark.parametrize("sampler", [name for name, solver in SAMPLERS.items() if not solver.adaptive])
def test_evaluations_and_times(sampler):
    """How often the network is evaluated, at which times, and that it gets the condition untouched."""
    tr, cond, times = transport("linear"), {"label": torch.zeros(3)}, []
    net = MIXTURE.network("linear", "velocity")

    def recorded(x, t, c):
        assert c is cond
        assert (t == t[0]).all()
        times.append(t[0].item())
        return net(x, t, c)

    run, use = SAMPLERS[sampler].run, SAMPLERS[sampler].use
    grid = time_grid(tr, use, 5)
    run(tr.denoiser(recorded), normal(3, 2), grid, cond, noise=source(0))
    points = grid.tolist()
    expected = {
        "heun": sorted(points[:-1] + points[1:], reverse=True),
        "sde_heun": sorted(points[:-1] + points[1:-1], reverse=True),  # once in the last step
    }
    assert times == expected.get(sampler, points[:-1])


def test_parts_of_a_state_follow_their_own_grids():
    """A grid (S + 1, 2): each half of the state is sampled as if alone."""

    class Halves(Layout):
        def expand(self, values):
            values = values[:, None].expand(-1, 2) if values.ndim == 1 else values
            return values.repeat_interleave(self.shape[0] // 2, dim=1)

    def net(x, t, cond):
        return torch.tanh(3 * x)

    tr, layout = transport("gvp"), Halves((4,), 2)
    grid = torch.stack([torch.linspace(1, 0.1, 7), torch.linspace(0.8, 0.3, 7)], 1).double()
    x = normal(5, 4)
    for name, run in ((name, solver.run) for name, solver in SAMPLERS.items()):
        steady = {"noise": torch.ones_like}
        whole = run(tr.denoiser(net, layout), x, grid, {}, **steady)
        for k, half in enumerate((slice(0, 2), slice(2, 4))):
            alone = run(tr.denoiser(net), x[:, half], grid[:, k], {}, **steady)
            bound = 1e-2 if name == "dopri5" else 1e-9  # one step size for both parts
            torch.testing.assert_close(whole[:, half], alone, rtol=bound, atol=bound, msg=name)


# The SDE's coefficient


@pytest.mark.parametrize("path", ["linear", "gvp", "vp", "ddpm"])
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_every_coefficient_keeps_the_marginals(diffusion, path):
    """From exact samples at t = 0.9 down to 0.3, the whole distribution of x_t is kept, by both solvers.

    The law of x_0.3 is a mixture again: means alpha m_k, variances alpha² s_k² + sigma².
    """
    g = torch.Generator().manual_seed(0)
    mode = torch.multinomial(MIXTURE.weights, 2000, True, generator=g)
    x0 = MIXTURE.means[mode] + MIXTURE.stds[mode] * normal(2000, 2, seed=1)
    start, end = PATHS[path](f64(0.9)), PATHS[path](f64(0.3))
    x = start.alpha * x0 + start.sigma * normal(2000, 2, seed=2)
    grid = torch.linspace(0.9, 0.3, 61, dtype=torch.float64)
    mean, covariance = (
        end.alpha * MIXTURE.mean,
        end.alpha**2 * MIXTURE.covariance + end.sigma**2 * torch.eye(2),
    )
    for name in ("euler_maruyama", "sde_heun"):
        found = SAMPLERS[name].run(
            MIXTURE.denoiser(path, "noise"),
            x,
            grid,
            {},
            noise=source(3),
            diffusion=diffusion,
            last_step="none",
        )
        error = 4 * (covariance.diagonal().max() / 2000).sqrt().item()
        assert (found.mean(0) - mean).abs().max().item() < error + 0.01
        assert (found.T.cov() - covariance).abs().max().item() < 1.5 * error + 0.02
        assert (found - x).std() > 0.1


@pytest.mark.parametrize(("path", "predict"), [("linear", "velocity"), ("gvp", "velocity"), ("vp", "noise")])
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_every_coefficient_from_noise_to_data(diffusion, path, predict):
    """The whole default grid, also where the coefficient alone would be infinite or overshoot."""
    chosen = SamplingConfig(sampler="euler_maruyama", steps=100, diffusion=diffusion)
    tr = transport(path, predict=predict)
    x = chosen.run(
        MIXTURE.denoiser(path, predict), normal(2000, 2, seed=5), chosen.times(tr), {}, noise=source(6)
    )
    mean, covariance, weight = gaps(x)
    assert mean < 4 * STANDARD_ERRORS["mean"] / 2000**0.5 + 0.02
    assert covariance < 4 * STANDARD_ERRORS["covariance"] / 2000**0.5 + 0.03
    assert weight < 4 * STANDARD_ERRORS["weight"] / 2000**0.5 + 0.02


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("constant", "linear", 2.0),
        ("sigma", "gvp", 2 * math.sin(0.35 * math.pi)),
        ("sigma", "linear", 1.4),
        ("linear", "vp", 1.4),
        ("decreasing", "linear", (1 - 2 * math.cos(0.7 * math.pi)) ** 2 / 4),
        ("increasing_decreasing", "linear", 2 * math.sin(0.7 * math.pi) ** 2),
        ("sbdm", "linear", 2 * 2.333333),  # V of SiT's paths at its time 0.3
        ("sbdm", "gvp", 2 * 3.082861373),
        ("sbdm", "vp", 2 * 7.015),
        ("kl_eta", "linear", 2 * 2.333333 / math.sqrt(1 + 4.666667**2)),
    ],
)
def test_values_of_the_coefficients(name, path, expected):
    t = f64(0.7)
    assert DIFFUSIONS[name](t, PATHS[path](t), 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_the_bound_of_a_coefficient_is_its_step():
    """D <= sigma sigma_start/h: a first step from pure noise replaces the noise, a last one leaves the estimate."""
    denoise = MIXTURE.denoiser("linear", "velocity")
    for at, t, s, norm, expected in (
        (1.0, 1.0, 0.9, 1e9, 10.0),
        (0.1, 0.1, 0.05, 1.0, 0.2),
        (0.05, 0.1, 0.05, 1.0, 0.1),
        (0.5, 0.5, 0.49, 1.0, 1.0),
    ):
        found = coefficient("constant", norm, denoise, f64(at), f64(t), f64(s))
        assert found.item() == pytest.approx(expected)
    x, t = normal(5, 2), torch.full((5,), 0.04, dtype=torch.float64)
    last = SAMPLERS["euler_maruyama"].run(denoise, x, f64([0.04, 0.0]), {}, noise=None, diffusion="constant")
    torch.testing.assert_close(last, x - 0.04 * (p := denoise(x, t, {})).velocity - 0.04 * p.eps)


@pytest.mark.parametrize("sampler", ["euler_maruyama", "sde_heun"])
@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler", "none"])
def test_last_steps(sampler, last_step):
    """From t = 0.04, by the formulas; and how often the network is evaluated."""
    calls, draws = [], []
    denoise, x = MIXTURE.denoiser("gvp", "velocity"), normal(5, 2)

    def counted(x, t, cond, at):
        calls.append(t[0].item())
        return denoise(x, t, cond)

    def noise(x):
        draws.append(x)
        return torch.zeros_like(x)

    chosen = SamplingConfig(sampler=sampler, steps=1, last_step=last_step, diffusion="linear")
    grid, t = f64([0.04, 0.0]), torch.full((5,), 0.04, dtype=torch.float64)
    found = chosen.run(replace(denoise, predict=counted), x, grid, {}, noise=noise)
    p, h = denoise(x, t, {}), 0.04
    expected = {
        "mean": x - h * (p.velocity - 0.04 * p.score),
        "tweedie": x / p.coeffs.alpha + p.coeffs.sigma**2 / p.coeffs.alpha * p.score,
        "euler": x - h * p.velocity,
        "none": x - h * (p.velocity - 0.04 * p.score),
    }
    if (sampler, last_step) != ("sde_heun", "none"):
        torch.testing.assert_close(found, expected[last_step])
    assert len(draws) == (last_step == "none")
    assert len(calls) == chosen.nfe(grid, transport("gvp"))


def test_the_grid_of_an_sde_ends_with_its_last_step():
    tr = transport("gvp", predict="noise")
    grid = SamplingConfig(sampler="sde_heun", steps=5, last_step_size=0.1).times(tr)
    torch.testing.assert_close(grid, f64([*torch.linspace(0.999, 0.1, 5).tolist(), 0]), rtol=1e-6, atol=0)
    grid = SamplingConfig(sampler="sde_heun", steps=5, last_step="none").times(tr)
    torch.testing.assert_close(grid, torch.linspace(0.999, 0.001, 6, dtype=torch.float64))
    with pytest.raises(InputError, match=r"`last_step_size` 0.9995 must be less than 0.999"):
        SamplingConfig(sampler="sde_heun", last_step_size=0.9995).times(tr)


def test_a_singular_coefficient_is_refused():
    """Where the grid begins (1/alpha), where Heun ends (1/sigma), and a negative one."""
    denoise, x = MIXTURE.denoiser("linear", "velocity"), normal(3, 2)
    for name, wrong, grid, message in (
        ("euler_maruyama", lambda t, c, norm: norm / c.alpha, [1.0, 0.5, 0.0], "is inf at t = 1 "),
        ("sde_heun", lambda t, c, norm: norm / c.sigma, [0.5, 0.0], "is inf at t = 0 "),
        ("euler_maruyama", lambda t, c, norm: norm * (t - 0.7), [0.5, 0.1], "is -0.2 at t = 0.5 "),
        ("sde_heun", "sideways", [0.5, 0.1], "unknown `diffusion` 'sideways'; choose one of: sigma"),
    ):
        with pytest.raises(InputError, match=message):
            SAMPLERS[name].run(denoise, x, f64(grid), {}, noise=source(0), diffusion=wrong, last_step="none")


def test_the_loss_by_time_shapes_kl_eta():
    """Where the loss vanishes no noise is worth its price; where it is large, SBDM's is."""
    t = f64([0.2, 0.9])
    c = PATHS["linear"](t)
    found = kl_eta(t, c, 1.0, eta=1.0, loss=lambda t: f64([0.0, 1e12]))
    torch.testing.assert_close(
        found, f64([0.0, DIFFUSIONS["sbdm"](f64(0.9), PATHS["linear"](f64(0.9)), 1.0)])
    )


# Choices that only some samplers have


def overridden(config, **values):
    return config.override(SamplingRequest.of(values))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"sampler": "heun", "diffusion": "sbdm"},
            "`diffusion` sbdm: sampler heun has no such choice; leave it out, or take `sampler` euler_maruyama or",
        ),
        ({"sampler": "ancestral", "last_step": "mean"}, "`last_step` mean: sampler ancestral has no such"),
        ({"sampler": "sde_heun", "diffusion_norm": 0.0}, "diffusion_norm"),
        ({"sampler": "sde_heun", "diffusion_norm": math.inf}, "diffusion_norm"),
        ({"sampler": "sde_heun", "diffusion": "sideways"}, "diffusion: unknown 'sideways'; there are sigma,"),
        ({"sampler": "dopri5", "steps": 50}, "`steps` 50: dopri5 chooses its own steps; give `tolerance`"),
        ({"sampler": "heun", "respacing": "ddim50"}, "`respacing` ddim50: sampler heun has no such choice"),
        (
            {"sampler": "ddim", "respacing": "ddim50", "steps": 9},
            "`steps` 9 and `respacing` ddim50: both say",
        ),
        ({"sampler": "dopri5", "grid": "karras"}, "`grid` karras: sampler dopri5 has no such choice"),
        ({"sampler": "leapfrog"}, "sampler: unknown 'leapfrog'; there are euler, heun"),
        ({"steps": 0}, "steps.*0"),
    ],
)
def test_refused_choices(choices, message):
    with pytest.raises(InputError, match=message) as error:
        overridden(SamplingConfig(), **choices)
    assert "\n" not in str(error.value)


def test_another_sampler_leaves_the_recipes_choices_behind():
    recipe = SamplingConfig(sampler="sde_heun", diffusion="sbdm", last_step="tweedie", steps=7)
    assert overridden(recipe, sampler="heun", diffusion=None).choices == {"grid": None}
    assert overridden(recipe, sampler="euler_maruyama", diffusion_norm=2.0).choices == {
        "grid": None,
        "diffusion": "sbdm",
        "diffusion_norm": 2.0,
        "last_step": "tweedie",
        "last_step_size": 0.04,
    }
    assert overridden(recipe) == recipe
    with pytest.raises(InputError, match="`steps` 5: dopri5 chooses"):
        overridden(SamplingConfig(sampler="dopri5"), steps=5)


def test_a_solver_of_ones_own_is_a_choice_and_its_evaluations_are_counted(monkeypatch):
    """The explicit midpoint rule, with one choice that other solvers have too."""

    def midpoint(step, x, memory=None, *, eta=0.5):
        half = x + eta * step.size(x) * step.ask(x).velocity
        return x + step.size(x) * step.ask(half, torch.lerp(step.t, step.s, eta), stage=1).velocity, None

    with pytest.raises(InputError, match="sampler: unknown 'midpoint'"):
        overridden(SamplingConfig(), sampler="midpoint")
    monkeypatch.setitem(SAMPLERS, "midpoint", Solver(midpoint, "ode"))
    chosen = overridden(SamplingConfig(), sampler="midpoint", steps=40)
    assert chosen.choices == {"grid": None, "eta": 0.5}
    tr = transport("linear")
    grid = chosen.times(tr)
    assert chosen.nfe(grid, tr) == 80
    seen = []
    denoise, x = MIXTURE.denoiser("linear", "velocity"), normal(8, 2, seed=3)
    found = chosen.run(denoise, x, grid, {}, after=lambda step, x: seen.append((step.index, step.last, x)))
    fine = SAMPLERS["heun"].run(denoise, x, SamplingConfig(sampler="heun", steps=400).times(tr), {})
    assert (found - fine).norm(dim=1).mean() < 0.02
    assert [(index, last) for index, last, _ in seen] == [(k, k == 39) for k in range(40)]
    assert seen[-1][2] is found


def test_what_wrappers_know_of_a_step():
    """Where it goes, which evaluation it is, what its rows are for, and a store for the whole trajectory."""
    seen = []
    denoise = MIXTURE.denoiser("linear", "velocity")

    def watched(x_t, t, cond, at):
        at.store[len(at.store)] = t
        seen.append((at.to.item(), at.index, at.stage, at.roles, at.store))
        return denoise(x_t, t, cond, at)

    guided = cfg(
        replace(denoise, predict=watched), lambda cond: {"label": cond["label"] * 0}, 2.0, (0.0, 0.6)
    )
    SAMPLERS["heun"].run(guided, normal(2, 2), f64([1.0, 0.5, 0.25]), {"label": torch.ones(2)})
    both = ("cond", "null")
    assert [row[:4] for row in seen] == [
        (0.5, 0, 0, ("cond",)),
        (0.5, 0, 1, both),
        (0.25, 1, 0, both),
        (0.25, 1, 1, both),
    ]
    assert all(row[4] is seen[0][4] for row in seen)
    assert len(seen[0][4]) == 4


# Grids


@pytest.mark.parametrize("steps", [1, 2, 7, 250])
@pytest.mark.parametrize("use", ["ode", "sde", "jump"])
@pytest.mark.parametrize(("path", "predict"), itertools.product(PATHS, PREDICTIONS))
def test_grids(path, predict, use, steps):
    tr = transport(path, predict=predict)
    grid = time_grid(tr, use, steps)
    low, high = tr.interval("sde" if use == "sde" else "ode")
    assert grid.shape == (steps + 1,)
    assert grid.dtype == torch.float64
    assert (grid.diff() < 0).all()
    assert grid[0] == high
    assert grid[-1] == (low if use == "ode" else 0)
    if use == "sde" and steps > 1:
        assert grid[-2] == 0.04
    if use == "jump" and tr.knots:
        knots = {(i + 1) / 1000 for i in range(1000)}
        assert set(grid[:-1].tolist()) <= knots


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("use", ["ode", "sde", "jump"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_named_grids(spacing, use, steps):
    """The ends of the sampler's own grid, descending between."""
    for tr in (transport("linear"), transport("gvp", predict="noise"), transport("vp"), transport("ddpm")):
        grid = time_grid(tr, use, steps, grid=spacing)
        assert grid.shape == (steps + 1,)
        assert (grid.diff() < 0).all()
        assert grid[0] == tr.interval("ode")[1]
        assert grid[-1] == (tr.interval("ode")[0] if use == "ode" else 0)
        if use == "sde" and steps > 1:
            assert grid[-2] == 0.04


def test_spacings():
    """What each keeps even, between the ends."""
    tr = transport("vp", predict="noise")
    c = tr.coeffs(time_grid(tr, "ode", 12, grid="log_snr"))
    steps = (c.alpha / c.sigma).log().diff()
    torch.testing.assert_close(steps[1:-1], steps[1].expand(10), rtol=1e-6, atol=0)
    c = tr.coeffs(time_grid(tr, "ode", 12, grid="karras"))
    steps = ((c.sigma / c.alpha) ** (1 / 7)).diff()
    torch.testing.assert_close(steps[1:-1], steps[1].expand(10), rtol=1e-6, atol=0)
    shifted = time_grid(transport("linear"), "ode", 4, grid="shifted")
    torch.testing.assert_close(shifted, f64([1, 0.9, 0.75, 0.5, 0]))


def test_respacing_chooses_the_knots():
    tr = transport("ddpm", predict="noise")
    for name in ("ddim", "ancestral", "dpmpp_2m"):
        chosen = overridden(SamplingConfig(sampler=name), respacing="ddim50")
        grid = chosen.times(tr)
        assert grid.tolist() == [*((i + 1) / 1000 for i in reversed(respaced("ddim50"))), 0]
        assert chosen.nfe(grid, tr) == 50
    assert time_grid(tr, "jump", 7, respacing="100,50").shape == (151,)
    assert time_grid(tr, "jump", 7, respacing="1").tolist() == [1, 0]
    with pytest.raises(InputError, match="`respacing` ddim50: path linear has no knots"):
        time_grid(transport("linear"), "jump", 5, respacing="ddim50")
    with pytest.raises(InputError, match="`respacing` 50 and `grid` karras"):
        time_grid(tr, "jump", 5, respacing="50", grid="karras")


def test_respaced_sections():
    assert respaced("10,5,1", total=100) == [0, 4, 7, 11, 15, 18, 22, 26, 29, 33, 34, 42, 50, 58, 66, 67]
    assert respaced("1000") == list(range(1000))
    assert respaced("500,500") == list(range(1000))
    assert respaced("1") == [0]
    assert respaced("2") == [0, 999]
    assert respaced("ddim1000") == list(range(1000))
    assert respaced("ddim1") == [0]
    assert respaced("ddim334") == list(range(0, 1000, 3))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("1001", "1001: a section of 1000 steps has 1 to 1000"),
        ("0", "0: a section of 1000 steps"),
        ("100,501", "501: a section of 500 steps"),
        ("ddim300", "no whole stride visits 300 of 1000 steps; use '300' instead"),
        ("ddim0", "no whole stride visits 0"),
        ("", "cannot read ''"),
        ("50,", "cannot read '50,'"),
        ("-5", "cannot read '-5'"),
        ("ddim", "cannot read 'ddim'"),
        ("2.5", "give for instance '250'"),
    ],
)
def test_respaced_errors(sections, message):
    with pytest.raises(InputError, match=message):
        respaced(sections)


def test_grid_errors():
    for use in ("ode", "sde", "jump"):
        with pytest.raises(InputError, match="at least 1, not 0"):
            time_grid(transport("linear"), use, 0)
    with pytest.raises(InputError, match="1001"):
        time_grid(transport("ddpm"), "jump", 1001)


def test_one_step_starts_from_noise():
    """The published respacing keeps index 0 of a one-step process; a sampler must start at t = 1."""
    grid = time_grid(transport("ddpm", predict="noise"), "jump", 1)
    assert grid.tolist() == [1.0, 0.0]
    x = SAMPLERS["ddim"].run(MIXTURE.denoiser("ddpm", "noise"), normal(2000, 2), grid, {})
    torch.testing.assert_close(x.mean(0), MIXTURE.mean, rtol=0, atol=0.05)  # E[x0 | pure noise]


# Guidance


CLASS_MEANS, STD = f64([[-2.0, 0.0], [2.0, 1.0], [0.5, -0.25]]), 0.5  # two classes and "unknown"


def two_classes(rows=None):
    """The exact network of classes N(m_c, 0.25 I), velocity on straight lines."""

    def net(x, t, cond):
        if rows is not None:
            rows.append((len(x), t[0].item()))
        alpha, sigma = (1 - t)[:, None], t[:, None]
        mean = CLASS_MEANS[cond["label"]]
        gap = (x - alpha * mean) / (alpha**2 * STD**2 + sigma**2)
        return sigma * gap - (mean + alpha * STD**2 * gap)

    return net


def null(cond):
    return {"label": torch.full_like(cond["label"], 2)}


LABELS = {"label": torch.tensor([0, 1, 1, 0])}


def test_scale_one_is_the_denoiser_itself():
    denoise = transport("linear").denoiser(two_classes())
    assert cfg(denoise, null, 1.0) is denoise
    assert cfg(denoise, null, 1) is denoise


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guided_gaussians_are_gaussian(scale):
    """p_null^(1-w) p_c^w of Gaussians of one variance is that Gaussian about m = m0 + w (m_c - m0), and the
    flow from N(0, 1) to it is x -> m + std x."""
    denoise = cfg(transport("linear").denoiser(two_classes()), null, scale)
    x = normal(4, 2)
    found = SAMPLERS["heun"].run(denoise, x, torch.linspace(1, 0, 201, dtype=torch.float64), LABELS)
    mean = CLASS_MEANS[2] + scale * (CLASS_MEANS[LABELS["label"]] - CLASS_MEANS[2])
    torch.testing.assert_close(found, mean + STD * x, rtol=0, atol=5e-4)


def test_guidance_of_scale_nearly_one_is_nearly_the_conditional():
    """The two branches (one that calls twice the rows, one that does not) meet."""
    denoise = transport("linear").denoiser(two_classes())
    x, t = normal(4, 2), torch.full((4,), 0.6, dtype=torch.float64)
    guided, plain = cfg(denoise, null, 1 + 1e-9)(x, t, LABELS), denoise(x, t, LABELS)
    for name in ("x0", "eps", "velocity", "score", "x_t"):
        torch.testing.assert_close(getattr(guided, name), getattr(plain, name), rtol=0, atol=1e-7)
    for one, other in zip(guided.coeffs, plain.coeffs, strict=True):
        assert one.shape == other.shape


def test_interval_runs_the_conditional_rows_only():
    """Both ends belong to the interval."""
    rows, grid = [], torch.linspace(1, 0, 9, dtype=torch.float64)  # eighths: exact
    denoise = transport("linear").denoiser(two_classes(rows))
    SAMPLERS["euler"].run(cfg(denoise, null, 3.0, (0.25, 0.75)), normal(4, 2), grid, LABELS)
    assert rows == [(4, 1.0), (4, 0.875), *((8, t) for t in (0.75, 0.625, 0.5, 0.375, 0.25)), (4, 0.125)]


def test_an_empty_interval_is_no_guidance():
    denoise, grid = transport("linear").denoiser(two_classes()), torch.linspace(1, 0, 11, dtype=torch.float64)
    x = normal(4, 2)
    plain = SAMPLERS["heun"].run(denoise, x, grid, LABELS)
    off = SAMPLERS["heun"].run(cfg(denoise, null, 5.0, (2.0, 3.0)), x, grid, LABELS)
    on = SAMPLERS["heun"].run(cfg(denoise, null, 5.0), x, grid, LABELS)
    assert off.equal(plain)
    assert (on - plain).abs().max() > 1


def test_guidance_keeps_the_conditional_variance():
    tr = transport("ddpm", predict="noise", variance="learned")

    def net(x, t, cond):
        return torch.cat([x, cond["label"].double()[:, None].expand(-1, 2)], 1)

    x, t = normal(4, 2), torch.full((4,), 0.5, dtype=torch.float64)
    guided = cfg(tr.denoiser(net), null, 4.0)(x, t, LABELS)
    assert guided.var.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]


def test_learned_variance_decides_the_ancestral_noise():
    """Outputs -1 and 1 draw with the posterior's variance and with beta; without one, the posterior's."""
    grid, x = f64([0.9, 0.5, 0.0]), normal(3, 2)

    def after(var, draw):
        tr = transport("ddpm", predict="data", variance="fixed" if var is None else "learned")
        seen = []

        def net(x, t, cond):
            seen.append(x)
            x0 = torch.zeros_like(x)
            return x0 if var is None else torch.cat([x0, torch.full_like(x, var)], 1)

        SAMPLERS["ancestral"].run(tr.denoiser(net), x, grid, {}, noise=lambda x: torch.full_like(x, draw))
        return seen[1]

    (a, s), (b, r) = ((c.alpha, c.sigma) for c in map(PATHS["ddpm"], f64([0.9, 0.5])))
    beta = 1 - (a / b) ** 2
    small = beta * r**2 / s**2
    for var, variance in ((None, small), (-1.0, small), (1.0, beta), (0.0, beta * r / s)):
        torch.testing.assert_close(after(var, 1.0) - after(var, 0.0), variance.sqrt().expand(3, 2))


# Randomness of generation


def test_noise_of_a_row_is_its_seeds():
    together = RowNoise([5, 6, 7])
    alone = [RowNoise([seed]) for seed in (7, 5, 6)]
    first, second = (together(torch.empty(3, 2, 4)) for _ in range(2))
    for noise, row in zip(alone, (2, 0, 1), strict=True):
        assert noise(torch.empty(1, 2, 4)).equal(first[row : row + 1])
        assert noise(torch.empty(1, 2, 4)).equal(second[row : row + 1])
    assert not first.equal(second)
    assert not first[0].equal(first[1])


def small_dit():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = backbone("DiT", width=48, depth=2, heads=4, classes=10, channels=2)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_k_does_not_depend_on_its_batch(sampler):
    """A batch of 6 and 6 batches of 1, in another order, in float32, with guidance: within 1e-4."""
    net, tr = small_dit(), transport("linear")
    denoise = cfg(tr.denoiser(net), net.null, 2.0)
    run, use = SAMPLERS[sampler].run, SAMPLERS[sampler].use
    grid = time_grid(tr, use, 6)

    def generate(seeds):
        noise = RowNoise(seeds)
        x = noise(torch.empty(len(seeds), 2, 8, 8))
        return run(denoise, x, grid, {"label": torch.tensor(seeds) % 10}, noise=noise)

    seeds = [11, 3, 8, 2**40, 0, 4]
    together = generate(seeds)
    alone = {seed: generate([seed])[0] for seed in sorted(seeds)}
    torch.testing.assert_close(together, torch.stack([alone[seed] for seed in seeds]), rtol=0, atol=1e-4)
    assert together.std() > 0.1
    assert together.flatten(1).std(0).min() > 0.01  # six different images


def test_a_wrapped_denoiser_keeps_the_path():
    denoise = transport("vp").denoiser(two_classes())
    wrapped = replace(denoise, predict=denoise)
    assert cfg(wrapped, null, 2.0).path == denoise.path
