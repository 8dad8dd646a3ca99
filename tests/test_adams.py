"""Adams-Bashforth methods of higher order: their weights, and the orders that can be fitted."""

import math

import pytest
import torch

from ditkit.sampling import SAMPLERS
from ditkit.sampling.adams import EQUAL_STEPS, Past, weights
from ditkit.sampling.solver import Step
from ditkit.transports import PATHS, PREDICTIONS, Denoiser, Prediction

SPREAD = 0.5
"""Data is normal with this standard deviation, so the ODE's solution is known: x grows as the spread of x_t."""


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


def spread(t):
    c = PATHS["linear"](t)
    return (c.alpha**2 * SPREAD**2 + c.sigma**2).sqrt()


def velocity(x, t):
    c = PATHS["linear"](t)
    return (c.alpha * c.d_alpha * SPREAD**2 + c.sigma * c.d_sigma) / spread(t) ** 2 * x


def answer(x, t, cond, at):
    c = PATHS["linear"](t)
    c = type(c)(*(value[:, None] for value in c))
    pair = PREDICTIONS["velocity"].decode(velocity(x, t[:, None]), x, c)
    return Prediction(c, x, *pair)


DENOISE = Denoiser(answer, PATHS["linear"])


def error(name: str, grid: torch.Tensor, remembered: int) -> float:
    """At the end of the grid, of a trajectory that knows the velocities at its first times."""
    exact = spread(grid)[:, None, None]
    past = Past(
        tuple(reversed(grid[:remembered])),
        tuple(
            velocity(x, t) for x, t in reversed([*zip(exact[:remembered], grid[:remembered], strict=True)])
        ),
    )
    x = exact[remembered]
    for index in range(remembered, len(grid) - 1):
        x, past = SAMPLERS[name].step(Step(DENOISE, {}, grid[index], grid[index + 1], index), x, past)
    return (x - exact[-1]).abs().item()


@pytest.mark.parametrize(
    ("name", "order", "power"),
    [("ab3", 3, 1.0), ("ab3", 3, 2.0), ("ab4", 4, 1.0), ("ab4", 4, 2.0), ("ipndm", 4, 1.0)],
)
def test_orders_can_be_fitted(name, order, power):
    """On equal steps, and on steps that change size (times to a power)."""
    coarse, fine = (
        error(name, 0.05 + 0.9 * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** power, order - 1)
        for steps in (80, 160)
    )
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3)


def test_fixed_weights_lose_their_order_where_steps_change():
    coarse, fine = (
        error("ipndm", 0.05 + 0.9 * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2, 3)
        for steps in (80, 160)
    )
    assert math.log2(coarse / fine) < 2.5


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_weights_of_equal_steps_are_the_fixed_ones(count):
    times = tuple(f64(0.5 + 0.1 * k) for k in range(count))
    found = weights(times[0], f64(0.4), times)
    assert [value.item() / -0.1 for value in found] == pytest.approx(EQUAL_STEPS[count - 1])


def test_weights_integrate_polynomials():
    """Of as many powers of the time as there are times, which each part of a state has of its own."""
    times = (f64([0.9, 0.8]), f64([0.95, 0.91]), f64([0.99, 0.96]), f64([1.0, 0.99]))
    t, s = times[0], f64([0.7, 0.2])
    found = weights(t, s, times)
    for power in range(4):
        total = sum(weight * time**power for weight, time in zip(found, times, strict=True))
        torch.testing.assert_close(total, (s ** (power + 1) - t ** (power + 1)) / (power + 1))


@pytest.mark.parametrize("name", ["ab3", "ab4", "ipndm"])
def test_the_first_steps_are_of_lower_order(name):
    """The first is Euler's, the second that of `ab2`; one evaluation each."""
    grid = torch.linspace(0.9, 0.5, 3, dtype=torch.float64)
    x = torch.ones(1, 1, dtype=torch.float64)
    torch.testing.assert_close(
        SAMPLERS[name].run(DENOISE, x, grid, {}), SAMPLERS["ab2"].run(DENOISE, x, grid, {})
    )
    assert SAMPLERS[name].evaluations(7) == 7
