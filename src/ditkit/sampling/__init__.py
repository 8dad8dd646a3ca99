"""Samplers: the step of each is a plain function, `solver.py` says of what, and what wraps a denoiser.

Which one? `ab2` with about ten steps on most networks that were measured (docs/results.md); where the path is DDPM's also
`dpmpp_2m` or `ddim`, and `ancestral` for many evaluations. `heun` (two evaluations a step) and `euler_maruyama` (SDE) are
what papers sample velocities with, `dopri5` is for the ODE's own answer. Every sampler runs on every transport.
"""

from ditkit.lazy import Named
from ditkit.sampling.adaptive import dopri5
from ditkit.sampling.ancestral import ancestral, ddim
from ditkit.sampling.grids import SPACINGS, respaced, time_grid
from ditkit.sampling.guidance import THRESHOLDS, autoguidance, cfg, classifier_guidance, threshold
from ditkit.sampling.known import Known, with_known
from ditkit.sampling.multistep import ab2, dpmpp_2m
from ditkit.sampling.ode import euler, heun, mean_velocity
from ditkit.sampling.sde import DIFFUSIONS, euler_maruyama, sde_heun
from ditkit.sampling.solver import Solver, Step

SAMPLERS: dict[str, Solver] = {
    "euler": Solver(euler, "ode"),
    "heun": Solver(heun, "ode"),
    "ab2": Solver(ab2, "ode"),
    "ab3": Solver(Named("ditkit.sampling.adams:ab3"), "ode"),
    "ab4": Solver(Named("ditkit.sampling.adams:ab4"), "ode"),
    "ipndm": Solver(Named("ditkit.sampling.adams:ipndm"), "ode"),
    "mean_velocity": Solver(mean_velocity, "ode"),
    "dopri5": Solver(dopri5, "ode", adaptive=True),
    "dpmpp_2m": Solver(dpmpp_2m, "jump"),
    "unipc": Solver(Named("ditkit.sampling.exponential:unipc"), "jump"),
    "deis": Solver(Named("ditkit.sampling.deis:deis"), "jump"),
    "sde_dpmpp_2m": Solver(Named("ditkit.sampling.exponential:sde_dpmpp_2m"), "jump"),
    "ddim": Solver(ddim, "jump"),
    "ancestral": Solver(ancestral, "jump"),
    "euler_maruyama": Solver(euler_maruyama, "sde"),
    "sde_heun": Solver(sde_heun, "sde"),
}

__all__ = [
    "DIFFUSIONS",
    "SAMPLERS",
    "SPACINGS",
    "THRESHOLDS",
    "Known",
    "Solver",
    "Step",
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
    "heun",
    "respaced",
    "sde_heun",
    "threshold",
    "time_grid",
    "with_known",
]
