"""What a solver is: a function that takes one step. `Solver.run` drives it over a grid of times, from noise to data.

    def euler(step: Step, x: Tensor, memory: None = None) -> tuple[Tensor, None]:
        return x + step.size(x) * step.ask(x).velocity, None

A step gets the state x (B, *S) at `step.t` and gives it at `step.s`, with whatever it wants to remember for the next one; the
first gets None. Keyword-only parameters are what a user can choose (`SolverChoices`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from inspect import signature
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from ditkit.layout import Cond
from ditkit.lazy import torch
from ditkit.sampling.grids import time_grid
from ditkit.transports import PATHS, At, Denoiser, Prediction

if TYPE_CHECKING:
    from torch import Tensor

Noise = Callable[["Tensor"], "Tensor"]
"""Standard normal numbers of the shape of a state (B, *S)."""
Use = Literal["ode", "sde", "jump"]
"""The kind of time grid, see `time_grid`."""

GRID_CHOICES: dict[Use, tuple[str, ...]] = {
    "ode": ("grid",),
    "jump": ("grid", "respacing"),
    "sde": ("grid", "last_step", "last_step_size"),
}
"""Keywords of `time_grid` that one can choose for each kind."""


def rows(t: Tensor, x: Tensor) -> Tensor:
    """One grid point, () or (K,), for every row of the state: (B,) or (B, K)."""
    return t.expand(len(x), *t.shape)


@dataclass(frozen=True)
class Step:
    """One step of a solver, from the time t to the less noisy s, both () or (K,), in float64 on the CPU."""

    denoise: Denoiser
    cond: Cond
    t: Tensor
    s: Tensor
    index: int = 0
    """0 for the first step of a trajectory."""
    last: bool = False
    draw: Noise | None = None
    store: dict[str, Any] = field(default_factory=dict)
    """The store of the whole trajectory: what wraps a network can keep something in it from one evaluation to the next."""

    def ask(
        self, x: Tensor, time: Tensor | None = None, stage: int = 0, *, whole: bool = False
    ) -> Prediction:
        """The network at the state x (B, *S) and a time, t by default. `stage` counts the evaluations of a step; `whole`
        requests a prediction for the whole step, of networks that make one."""
        time = self.t if time is None else time
        at = At(to=self.s, index=self.index, stage=stage, whole=whole, store=self.store)
        return self.denoise(x, rows(time, x), self.cond, at)

    def expand(self, value: Tensor, x: Tensor) -> Tensor:
        """A number for each part, () or (K,), as what broadcasts with the state x."""
        return self.denoise.expand(rows(value, x), x)

    def size(self, x: Tensor) -> Tensor:
        """s - t, which is negative, broadcasting with the state x."""
        return self.expand(self.s - self.t, x)

    def of_row(self, k: int) -> Step:
        """The same step of the k-th image alone, with a store of its own."""
        return replace(self, cond={key: value[k : k + 1] for key, value in self.cond.items()}, store={})

    def noise(self, x: Tensor) -> Tensor:
        """New standard normal numbers of the shape of x."""
        assert self.draw is not None, "this solver draws noise: give `noise`"
        return self.draw(x)


@dataclass(frozen=True)
class Solver:
    """A step with the kind of grid it takes: one of `SAMPLERS`."""

    step: Callable[..., tuple[Tensor, Any]]
    use: Use
    adaptive: bool = False
    """It chooses its own times between the two ends of the grid."""

    @property
    def choices(self) -> dict[str, Any]:
        """What one can choose, with what it is when one does not."""
        grid = () if self.adaptive else GRID_CHOICES[self.use]
        of_grid = {name: value for name, value in keywords(time_grid).items() if name in grid}
        return of_grid | keywords(self.step)

    def run(
        self,
        denoise: Denoiser,
        x: Tensor,
        grid: Tensor,
        cond: Cond,
        *,
        noise: Noise | None = None,
        after: Callable[[Step, Tensor], None] | None = None,
        **choices: Any,
    ) -> Tensor:
        """The state at the end of the grid, (B, *S), from x, the state at its beginning.

        `noise` draws what stochastic solvers add; `after` is called with each step and the state that it led to.
        """
        memory: Any = None
        store: dict[str, Any] = {}
        last = len(grid) - 2
        for index, (t, s) in enumerate(pairwise(grid)):
            step = Step(denoise, cond, t, s, index, index == last, noise, store)
            x, memory = self.step(step, x, memory, **choices)
            if after is not None:
                after(step, x)
        return x

    def evaluations(self, steps: int, predict: str = "velocity", **choices: Any) -> int:
        """How often a network that predicts that is evaluated for an image in so many steps; counted by running the solver on
        a state of one number. Of more than 16 steps, those beyond are taken to cost what the 9th to the 16th do. A guided
        evaluation counts once. Not for a solver that chooses its times."""
        fixed = tuple(sorted((name, choices[name]) for name in choices if name in keywords(self.step)))
        if steps <= 16:
            return _evaluations(self, steps, predict, fixed)
        half, whole = (_evaluations(self, some, predict, fixed) for some in (8, 16))
        return whole + (whole - half) * (steps - 16) // 8


@cache
def _evaluations(solver: Solver, steps: int, predict: str, choices: tuple[tuple[str, Any], ...]) -> int:
    count = 0

    def counted(x_t: Tensor, t: Tensor, cond: Cond, at: At) -> Prediction:
        nonlocal count
        count += 1
        return Prediction(toy.coeffs(t, x_t), x_t, x_t, x_t)

    toy = Denoiser(counted, PATHS["linear"], meaning=predict)
    grid = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64, device="cpu")
    x = torch.zeros(1, 1, device="cpu")
    solver.run(toy, x, grid, {}, noise=torch.zeros_like, **dict(choices))
    return count


def keywords(function: Callable) -> dict[str, Any]:
    """A function's keyword-only parameters that have a default, and that."""
    parameters = signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
