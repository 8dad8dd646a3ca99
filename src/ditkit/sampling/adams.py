"""Steps of the probability-flow ODE of third and fourth order that ask the network once: Adams-Bashforth methods.

A step follows the polynomial through the last velocities; the first steps of a trajectory, which have fewer, are of lower
order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ditkit.lazy import torch
from ditkit.sampling.solver import Step

if TYPE_CHECKING:
    from torch import Tensor


class Past(NamedTuple):
    """The network's answers at earlier steps, the newest first."""

    times: tuple[Tensor, ...]
    """() or (K,) each."""
    velocities: tuple[Tensor, ...]
    """(B, *S) each."""

    def latest(self, count: int) -> Past:
        return Past(self.times[:count], self.velocities[:count])


EQUAL_STEPS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""The weights of the last 1, 2, 3 and 4 velocities where all steps are of one size."""


def ab3(step: Step, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
    """ODE, third order for steps of any sizes, one evaluation a step (Adams-Bashforth on the velocity)."""
    return _adams(step, x, past, 3)


def ab4(step: Step, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
    """ODE, fourth order for steps of any sizes, one evaluation a step (Adams-Bashforth on the velocity)."""
    return _adams(step, x, past, 4)


def ipndm(step: Step, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
    """ODE, fourth order where steps are equal, whose weights it always takes; one evaluation a step (iPNDM)."""
    known = _evaluated(step, x, past)
    total = sum(
        (weight * v for weight, v in zip(EQUAL_STEPS[len(known.times) - 1], known.velocities, strict=True)),
        start=torch.zeros_like(x),
    )
    return x + step.size(x) * total, known.latest(3)


def _adams(step: Step, x: Tensor, past: Past | None, order: int) -> tuple[Tensor, Past]:
    known = _evaluated(step, x, past)
    for weight, v in zip(weights(step.t, step.s, known.times), known.velocities, strict=True):
        x = x + step.expand(weight, x) * v
    return x, known.latest(order - 1)


def _evaluated(step: Step, x: Tensor, past: Past | None) -> Past:
    """With the velocity at the beginning of the step."""
    times, velocities = past or ((), ())
    return Past((step.t, *times), (step.ask(x).velocity, *velocities))


def weights(t: Tensor, s: Tensor, times: tuple[Tensor, ...]) -> list[Tensor]:
    """The integrals from t to s of the polynomials that are 1 at one of `times` (at most four) and 0 at the others, by Gauss's
    rule of two points, which is exact up to the third degree."""
    middle, half = (t + s) / 2, (s - t) / 2
    places = (middle - half / 3**0.5, middle + half / 3**0.5)
    found = []
    for own in times:
        others = [time for time in times if time is not own]
        values = [torch.ones_like(t), torch.ones_like(t)]
        for k, place in enumerate(places):
            for other in others:
                values[k] = values[k] * (place - other) / (own - other)
        found.append(half * (values[0] + values[1]))
    return found
