"""MeanFlow: its identity on a Gaussian whose mean velocity is known, its derivative, and whole trainings."""

import pytest
import torch
from conftest import CPU, FOUR_STEPS

from ditkit.backbones import BACKBONES
from ditkit.errors import InputError
from ditkit.layout import Layout
from ditkit.pipeline import load
from ditkit.recipes import recipe
from ditkit.sampling import SAMPLERS
from ditkit.training.loop import train
from ditkit.transports import PATHS, transport
from ditkit.transports.mean_flow import MeanFlow, derivative
from ditkit.transports.regression import Examples

SPREAD = 0.5
"""Data is normal with this standard deviation."""
FLOW = transport("linear", method="mean_flow")
LAYOUT = Layout((1,))


def spread(t):
    c = PATHS["linear"](t)
    return (c.alpha**2 * SPREAD**2 + c.sigma**2).sqrt()


def exact(x_t, t, cond):
    """The mean velocity: x_t grows as its spread. A step of no length has the velocity, the limit."""
    span = cond["span"]
    c = PATHS["linear"](t)
    at_once = (c.alpha * c.d_alpha * SPREAD**2 + c.sigma * c.d_sigma) / spread(t) ** 2
    mean = (1 - spread(t - span) / spread(t)) / torch.where(span == 0, 1.0, span)
    return torch.where(span == 0, at_once, mean)[:, None] * x_t


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_any_step_of_the_exact_mean_velocity_is_exact(steps):
    x = torch.randn(100, 1, dtype=torch.float64)
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    found = SAMPLERS["mean_velocity"].run(FLOW.denoiser(exact, LAYOUT), x, grid, {})
    torch.testing.assert_close(found, SPREAD * x)


def test_other_solvers_get_the_velocity():
    """They do not say where a step goes: Heun's error falls with the square of the steps."""
    x = torch.ones(1, 1, dtype=torch.float64)
    errors = []
    for steps in (20, 40):
        grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        found = SAMPLERS["heun"].run(FLOW.denoiser(exact, LAYOUT), x, grid, {})
        errors.append((found - SPREAD).abs().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def moments(net, power=0.0):
    """Of the loss on a Gaussian, of steps of all lengths."""
    g = torch.Generator().manual_seed(0)
    n = 20_000
    x0 = SPREAD * torch.randn(n, 1, generator=g, dtype=torch.float64)
    eps = torch.randn(n, 1, generator=g, dtype=torch.float64)
    t = torch.rand(n, generator=g, dtype=torch.float64)
    drawn = {"mean_flow": torch.rand(n, 2, generator=g, dtype=torch.float64)}
    method = MeanFlow(equal=0.25, power=power)
    found = method.losses(FLOW, net, Examples(x0, eps, t, {}, LAYOUT, drawn=drawn))
    return found["loss"].mean()


def test_the_exact_mean_velocity_is_where_the_loss_is_stationary():
    """For u = exact + a x_t + b span x_t: the gradient in a and b is zero but for the draws' noise, and elsewhere not."""

    def gradient(a, b):
        a, b = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (a, b))

        def net(x_t, t, cond):
            return exact(x_t, t, cond) + (a + b * cond["span"])[:, None] * x_t

        return torch.stack(torch.autograd.grad(moments(net), (a, b)))

    assert gradient(0.0, 0.0).abs().max() < 0.04
    assert gradient(0.5, 0.0)[0] > 0.2
    assert gradient(0.0, 1.0)[1] > 0.02


def test_steps_of_no_length_are_trained_on_the_velocity():
    """So is what a model is validated by."""
    net, x0, eps = (lambda x, t, cond: 0.3 * x), torch.randn(6, 1), torch.randn(6, 1)
    t = torch.rand(6, dtype=torch.float64)
    plain = transport("linear").losses(lambda x, t, cond: 0.3 * x, x0, {}, t=t, eps=eps, layout=LAYOUT)
    found = FLOW.losses(net, x0, {}, t=t, eps=eps, layout=LAYOUT)
    torch.testing.assert_close(found["mse"], plain["mse"])
    drawn = {"mean_flow": torch.stack([1 - t, torch.zeros_like(t)], dim=1)}
    torch.testing.assert_close(
        FLOW.losses(net, x0, {}, t=t, eps=eps, layout=LAYOUT, drawn=drawn)["mse"], plain["mse"]
    )


def test_times_are_sorted_and_a_share_of_steps_has_no_length():
    t = torch.tensor([0.2, 0.9, 0.9], dtype=torch.float64)
    drawn = {"mean_flow": torch.tensor([[0.3, 0.9], [0.3, 0.9], [0.3, 0.1]], dtype=torch.float64)}
    start, span = MeanFlow(equal=0.5).times(FLOW, t, LAYOUT, drawn)
    assert start.tolist() == pytest.approx([0.7, 0.9, 0.9])
    assert span.tolist() == pytest.approx([0.5, 0.2, 0])


NETWORKS = {
    "DiT-S/2": {"width": 24, "depth": 2, "heads": 2, "positions": "rotary"},
    "U-DiT-S": {"width": 16, "depth": (1, 1, 1, 1, 1), "heads": 2},
    "UNet": {"width": 8, "multipliers": (1, 2), "depth": 1},
    "MDM-64": {"widths": (32, 64), "depth": (1, 1), "attention": (0, 1), "condition_width": 64},
}
DIGITS = recipe("digits").replace(
    transport={"method": "mean_flow"},
    train=FOUR_STEPS | {"preview_images": 16, "validate_images": 16},
    sample={"sampler": "mean_velocity", "steps": 1},
)


def with_network(name):
    return DIGITS.with_backbone(type(BACKBONES[name])(**NETWORKS[name]))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_derivative_is_that_along_the_path(name):
    chosen = with_network(name).replace(data={"channels": 3})
    torch.manual_seed(0)
    net = chosen.build_backbone()
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.05)
    x, v, cond = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), {"label": torch.tensor([1, 2])}
    t, span = torch.tensor([0.4, 0.8]), torch.tensor([0.1, 0.5])
    u, rate = derivative(chosen.transport, net, x, t, span, cond, v)

    def along(h):
        return chosen.transport.evaluate(net, x + h * v, t + h, cond | {"span": span + h})[0]

    h = 1e-4
    torch.testing.assert_close(
        rate, (along(h) - along(-h)) / (2 * h), rtol=0.05, atol=0.05 * rate.abs().max().item()
    )
    torch.testing.assert_close(u, along(0))
    u.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("name", ["DiT-S/2", "UNet"])
def test_it_trains_resumes_and_samples_in_one_evaluation(name, tmp_path):
    chosen = with_network(name)
    last = train(chosen, tmp_path / "whole", device=CPU, progress=False)
    train(chosen.replace(train={"images": 16}), tmp_path / "half", device=CPU, progress=False)
    gone_on = train(chosen, tmp_path / "half", device=CPU, progress=False)
    for file in last.glob("*.safetensors"):
        assert file.read_bytes() == (gone_on / file.name).read_bytes(), file.name
    pipeline = load(tmp_path / "whole", CPU)
    plan = pipeline.plan({"label": [3]}, seeds=[0])
    assert plan.evaluations == 1
    pipeline.save(tmp_path / "snapshot")
    made = load(tmp_path / "snapshot", CPU).generate({"label": [3]}, seeds=[0], guidance=1.5)
    assert made.shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"predict": "noise"}, "transport.predict noise is not for it; give velocity"),
        ({"loss": "data"}, "transport.loss data is not for it; give output"),
        ({"path": "ddpm"}, "transport.path ddpm has steps; give linear"),
        ({"method": "mean_flow:equal=2"}, "equal: Input should be less than or equal to 1"),
    ],
)
def test_what_it_cannot_train_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        DIGITS.replace(transport=fields)


def test_levels_are_refused():
    with pytest.raises(InputError, match="mean_flow learns from states of one level"):
        DIGITS.with_backbone(BACKBONES["Matryoshka"])


def test_rows_of_several_images_are_refused():
    with pytest.raises(InputError, match="mean_flow learns from states of one size"):
        DIGITS.replace(train={"packed": True, "tokens": 64})
