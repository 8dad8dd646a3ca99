"""Samplers: plain functions of a denoiser and a time grid, and what wraps a denoiser.

Which one? `ab2` with about ten steps on most networks that were measured (docs/results.md); where the path is DDPM's also
`dpmpp_2m` or `ddim`, and `ancestral` for many evaluations. `heun` (two evaluations a step) and `euler_maruyama` (SDE) are
what papers sample velocities with, `dopri5` is for the ODE's own answer. Every sampler runs on every transport.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ditkit.sampling.adaptive import dopri5
from ditkit.sampling.ancestral import ancestral, ddim
from ditkit.sampling.grids import LAST_STEP_SIZE, respaced, time_grid
from ditkit.sampling.guidance import THRESHOLDS, autoguidance, cfg, classifier_guidance, threshold
from ditkit.sampling.held import Given, held
from ditkit.sampling.multistep import ab2, dpmpp_2m
from ditkit.sampling.ode import euler, heun
from ditkit.sampling.sde import DIFFUSIONS, euler_maruyama, sde_heun


class SamplerEntry(NamedTuple):
    """A sampler, the kind of time grid it runs on (see `time_grid`), what it costs and lets one choose."""

    run: Callable[..., Tensor]
    use: Literal["ode", "sde", "jump"]
    nfe: Callable[..., int] | None = lambda steps, **choices: steps
    """Evaluations of a network in so many steps (a guided one counts once), by what it predicts and the choices; None
    where it chooses them."""
    choices: Mapping[str, Any] = {"grid": None}
    """Keywords of `run` and `time_grid` that one can choose (`SolverChoices`), and what they are if not."""


JUMP = {"grid": None, "respacing": None}
SDE = {
    "grid": None,
    "diffusion": "sigma",
    "diffusion_norm": 1.0,
    "last_step": "mean",
    "last_step_size": LAST_STEP_SIZE,
}


def heun_nfe(steps: int, *, predict: str = "velocity", **choices: Any) -> int:
    return 2 * steps - (predict == "data")


def sde_heun_nfe(steps: int, *, last_step: str, **choices: Any) -> int:
    return 2 * steps - (last_step != "none")


SAMPLERS: dict[str, SamplerEntry] = {
    "euler": SamplerEntry(euler, "ode"),
    "heun": SamplerEntry(heun, "ode", heun_nfe),
    "ab2": SamplerEntry(ab2, "ode"),
    "dopri5": SamplerEntry(dopri5, "ode", None, {"tolerance": 1e-4}),
    "dpmpp_2m": SamplerEntry(dpmpp_2m, "jump", choices=JUMP),
    "ddim": SamplerEntry(ddim, "jump", choices={**JUMP, "eta": 0.0}),
    "ancestral": SamplerEntry(ancestral, "jump", choices=JUMP),
    "euler_maruyama": SamplerEntry(euler_maruyama, "sde", choices=SDE),
    "sde_heun": SamplerEntry(sde_heun, "sde", sde_heun_nfe, SDE),
}

__all__ = [
    "DIFFUSIONS",
    "SAMPLERS",
    "THRESHOLDS",
    "Given",
    "SamplerEntry",
    "ab2",
    "ancestral",
    "autoguidance",
    "cfg",
    "classifier_guidance",
    "ddim",
    "dopri5",
    "dpmpp_2m",
    "euler",
    "euler_maruyama",
    "held",
    "heun",
    "respaced",
    "sde_heun",
    "threshold",
    "time_grid",
]
