"""Samplers: plain functions of a denoiser and a time grid, and what wraps a denoiser.

Which one? Transports that predict velocity: `heun` (ODE, two evaluations a step) or `euler`, or
`euler_maruyama` (SDE). DDPM: `ddim` for few evaluations, `ancestral` for many. Every sampler runs on
every transport.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ditkit.sampling.ancestral import ancestral, ddim
from ditkit.sampling.grids import LAST_STEP_SIZE, respaced, time_grid
from ditkit.sampling.guidance import cfg
from ditkit.sampling.ode import euler, heun
from ditkit.sampling.sde import DIFFUSIONS, euler_maruyama, sde_heun


class SamplerEntry(NamedTuple):
    """A sampler, the kind of time grid it runs on (see `time_grid`), what it costs and lets one choose."""

    run: Callable[..., Tensor]
    use: Literal["ode", "sde", "jump"]
    nfe: Callable[..., int] = lambda steps, **choices: steps
    """Evaluations of the network in so many steps; a guided one counts once."""
    choices: Mapping[str, Any] = {}
    """Keywords of `run` and `time_grid` that one can choose (`SolverChoices`), and what they are if not."""


SDE = {"diffusion": "sigma", "diffusion_norm": 1.0, "last_step": "mean", "last_step_size": LAST_STEP_SIZE}


def sde_heun_nfe(steps: int, *, last_step: str, **choices: Any) -> int:
    return 2 * steps - (last_step != "none")


SAMPLERS: dict[str, SamplerEntry] = {
    "euler": SamplerEntry(euler, "ode"),
    "heun": SamplerEntry(heun, "ode", lambda steps, **choices: 2 * steps),
    "ddim": SamplerEntry(ddim, "jump"),
    "ancestral": SamplerEntry(ancestral, "jump"),
    "euler_maruyama": SamplerEntry(euler_maruyama, "sde", choices=SDE),
    "sde_heun": SamplerEntry(sde_heun, "sde", sde_heun_nfe, SDE),
}

__all__ = [
    "DIFFUSIONS",
    "SAMPLERS",
    "SamplerEntry",
    "ancestral",
    "cfg",
    "ddim",
    "euler",
    "euler_maruyama",
    "heun",
    "respaced",
    "sde_heun",
    "time_grid",
]
