"""Samplers: plain functions of a denoiser and a time grid, and what wraps a denoiser.

Which one? Transports that predict velocity: `heun` (ODE, two evaluations a step) or `euler`, or
`euler_maruyama` (SDE). DDPM: `ddim` for few evaluations, `ancestral` for many. Every sampler runs on
every transport.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from ditkit.sampling.ancestral import ancestral, ddim
from ditkit.sampling.grids import respaced, time_grid
from ditkit.sampling.guidance import cfg
from ditkit.sampling.ode import euler, heun
from ditkit.sampling.sde import euler_maruyama


class SamplerEntry(NamedTuple):
    """A sampler, the kind of time grid it runs on (see `time_grid`), and what a step costs."""

    run: Callable[..., Tensor]
    use: Literal["ode", "sde", "jump"]
    evaluations: int = 1
    """Of the network, per step; a guided one counts once."""


SAMPLERS: dict[str, SamplerEntry] = {
    "euler": SamplerEntry(euler, "ode"),
    "heun": SamplerEntry(heun, "ode", evaluations=2),
    "ddim": SamplerEntry(ddim, "jump"),
    "ancestral": SamplerEntry(ancestral, "jump"),
    "euler_maruyama": SamplerEntry(euler_maruyama, "sde"),
}

__all__ = [
    "SAMPLERS",
    "SamplerEntry",
    "ancestral",
    "cfg",
    "ddim",
    "euler",
    "euler_maruyama",
    "heun",
    "respaced",
    "time_grid",
]
