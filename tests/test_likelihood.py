"""Likelihoods of exact Gaussians, whose density is known."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import CPU

from ditkit.cli import main
from ditkit.codecs import CODECS
from ditkit.data import in_order
from ditkit.errors import InputError
from ditkit.pipeline import Pipeline, load
from ditkit.sampling import respaced, time_grid
from ditkit.sampling.likelihood import bits_per_dim, log_likelihood, variational_bound
from ditkit.scoring.likelihood import likelihoods
from ditkit.transports import PATHS, PREDICTIONS, transport


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(path, predict, covariance, **fields):
    """The exact denoiser of N(0, covariance) over the last dimension; `var` where variance is learned."""

    def net(x, t, cond):
        c = type(k := PATHS[path](t))(*(value[:, None] for value in k))
        marginal = c.alpha[..., None] ** 2 * covariance + c.sigma[..., None] ** 2 * torch.eye(len(covariance))
        whitened = torch.linalg.solve(marginal, x)
        out = PREDICTIONS[predict].view(c.alpha * whitened @ covariance, c.sigma * whitened, c)
        return torch.cat([out, torch.ones_like(x)], 1) if "variance" in fields else out

    return transport(path, predict=predict, **fields).denoiser(net)


ROTATED = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("path", "predict"), [("linear", "velocity"), ("gvp", "velocity"), ("vp", "noise"), ("linear", "score")]
)
def test_flow_of_an_exact_gaussian(path, predict):
    """Both probes of the plane together see the whole divergence: their mean is exact, each alone is not."""
    x0 = normal(6, 2) @ torch.linalg.cholesky(ROTATED).T
    expected = torch.distributions.MultivariateNormal(torch.zeros(2).double(), ROTATED).log_prob(x0)
    grid = time_grid(transport(path, predict=predict), "ode", 400)
    found = []
    for signs in ([1.0, 1.0], [1.0, -1.0]):
        calls = []

        def noise(x, signs=signs, calls=calls):
            calls.append(x)
            return 0.3 * torch.tensor(signs, dtype=torch.float64).expand_as(x)

        density, z = log_likelihood(gaussian(path, predict, ROTATED), x0, grid, {}, noise=noise)
        assert len(calls) == 1  # one probe for the trajectory
        found.append(density)
    torch.testing.assert_close((found[0] + found[1]) / 2, expected, rtol=0, atol=0.01)
    assert (found[0] - expected).abs().min() > 0.1
    assert z.std() > 0.5


def test_the_noise_an_image_flows_to():
    """N(0, S) is whitened: z = x0 / s along each axis."""
    variances = torch.tensor([0.25, 0.04], dtype=torch.float64)
    x0 = normal(5, 2)
    denoise = gaussian("linear", "velocity", variances.diag())
    density, z = log_likelihood(denoise, x0, torch.linspace(1, 0, 401).double(), {}, noise=torch.ones_like)
    torch.testing.assert_close(z, x0 / variances.sqrt(), rtol=0, atol=2e-3)
    exact = torch.distributions.Normal(0, variances.sqrt()).log_prob(x0).sum(1)
    torch.testing.assert_close(density, exact, rtol=0, atol=5e-3)


def test_bits_of_a_uniform_image():
    """Uniform over 256 levels from -1 to 1, each 2/255 wide: 8 bits."""
    density = torch.tensor([-12 * math.log(256 * 2 / 255)])
    torch.testing.assert_close(bits_per_dim(density, 12), torch.tensor([8.0]))


@pytest.mark.parametrize(("fields", "gap"), [({}, 0.63), ({"variance": "learned"}, 0.0)])
def test_variational_bound_of_an_exact_gaussian(fields, gap):
    """Over DDPM's 1,000 steps it is tight with the variance beta, which the net here learned, and 0.63 bits
    above with the posterior's (too small for the last steps); over 50 steps looser still."""
    std, stream = 0.25, torch.Generator().manual_seed(1)
    x0 = std * normal(6000, 2, seed=4)
    denoise = gaussian("ddpm", "noise", std**2 * torch.eye(2, dtype=torch.float64), **fields)
    exact = bits_per_dim(torch.distributions.Normal(0, std).log_prob(x0).sum(1), 2)
    fine, coarse = (
        variational_bound(
            denoise,
            x0,
            time_grid(transport("ddpm"), "jump", steps),
            {},
            noise=lambda x: torch.randn(x.shape, generator=stream, dtype=x.dtype),
        )
        for steps in (1000, 50)
    )
    assert fine.shape == (6000,)
    assert (fine - exact).mean().item() == pytest.approx(gap, abs=0.06)  # four standard errors
    assert coarse.mean() > fine.mean() + 0.1


def test_all_knots_are_the_papers_grid():
    assert time_grid(transport("ddpm"), "jump", 1000)[:-1].flip(0).tolist() == [
        (i + 1) / 1000 for i in respaced("1000")
    ]


# --- of a trained model on its own data ---------------------------------------------------------------


def test_images_of_one_level_cost_what_their_level_does():
    """A network that knows every pixel to be grey 0 but for a spread: the flow's bits are that Gaussian's."""
    spread = 0.1
    pipe = load("digits", CPU)
    net = OneGaussian(spread)
    found = likelihoods(replace(pipe, backbone=net), 6, method="flow")
    x0 = pipe.codec.encode(found.images).double()
    # minus log2 of the mass of a level, the noise of the level within it: close to density times width
    density = torch.distributions.Normal(0, spread).log_prob(x0).flatten(1).mean(1)
    expected = -density / math.log(2) - math.log2(2 / 255)
    torch.testing.assert_close(found.bits, expected, rtol=0.02, atol=0.02)
    assert net.labels == found_labels(pipe, 6)


class OneGaussian(torch.nn.Module):
    """The velocity of N(0, spread² I) on straight lines."""

    def __init__(self, spread):
        super().__init__()
        self.spread, self.labels, self.classes = spread, None, 10

    def fused(self):
        return self

    def forward(self, x, t, cond):
        self.labels = cond["label"].tolist()
        t = t[:, None, None, None].to(x)
        return (t - (1 - t) * self.spread**2) * x / ((1 - t) ** 2 * self.spread**2 + t**2)


def found_labels(pipe, count):
    (_, labels), *_ = in_order(pipe.recipe.data, "test", limit=count)
    return labels.tolist()


@pytest.mark.parametrize("method", ["flow", "bound"])
def test_an_images_bits_do_not_depend_on_the_batch(method):
    pipe = load("digits-dit", CPU)
    whole, parts = (likelihoods(pipe, 5, method=method, steps=4, batch=batch) for batch in (5, 2))
    torch.testing.assert_close(whole.bits, parts.bits, rtol=1e-4, atol=1e-4)
    assert whole.images.equal(parts.images)
    other = likelihoods(pipe, 5, method=method, steps=4, seed=100)
    assert (other.bits - whole.bits).abs().max() > 1e-3


def test_the_command_reports_both_parts_and_draws(tmp_path, capsys):
    assert main(["likelihood", "digits-dit", "--n", "4", "--steps", "5", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "likelihood.json").read_text())
    assert record["method"] == "bound"  # the ddpm path's own
    assert record["bits_per_dimension"].keys() == {"train", "test"}
    mean = record["bits_per_dimension"]["test"]["mean"]
    assert f"test   {mean:.3f} ± " in capsys.readouterr().out
    for picture in ("bits.png", "images.png"):
        assert (tmp_path / picture).stat().st_size > 1000


def test_latents_have_no_bits(small):
    latent = small.replace(codec=CODECS["vae"])
    pipe = Pipeline(latent, None, None, CPU)
    with pytest.raises(InputError, match="bits per dimension are of pixels"):
        likelihoods(pipe, 2)
