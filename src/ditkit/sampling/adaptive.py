"""A solver that chooses its own times, by torchdiffeq."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from ditkit.lazy import torch
from ditkit.sampling.solver import Step

if TYPE_CHECKING:
    from torch import Tensor


def dopri5(step: Step, x: Tensor, memory: None = None, *, tolerance: float = 1e-4) -> tuple[Tensor, None]:
    """ODE to a tolerance, relative and absolute (Dormand-Prince 5(4)): as many evaluations as that needs, all in one step.

    Image by image: an error norm over a batch would let images depend on each other. The solver looks beyond the ends of
    the step before it comes back; the network is not evaluated there. It works on the
    CPU, where its float64 times are, whatever the network's device.
    """
    from torchdiffeq import odeint  # imports scipy's integrators: most of a second

    start, end = step.t, step.s

    def alone(k: int) -> Tensor:
        own = step.of_row(k)
        evaluations = count()

        def slope(u: Tensor, now: Tensor) -> Tensor:  # u from 0 to 1 is time from start to end, for all parts
            time = torch.lerp(start, end, u.to(start).clamp(0, 1))
            velocity = own.ask(now.to(x), time, next(evaluations)).velocity.to(now)
            return own.expand(end - start, now) * velocity

        u = torch.linspace(0, 1, 2, dtype=torch.float64, device="cpu")
        return odeint(slope, x[k : k + 1].cpu(), u, rtol=tolerance, atol=tolerance, method="dopri5")[-1].to(x)

    return torch.cat([alone(k) for k in range(len(x))]), None
