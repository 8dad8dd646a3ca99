"""How samples are drawn unless a command says otherwise."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from ditkit.config import Section
from ditkit.errors import InputError
from ditkit.layout import Layout
from ditkit.sampling import SAMPLERS, time_grid
from ditkit.sampling.solver import keywords
from ditkit.transports import Transport


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(f"must be two times with 0 <= low <= high <= 1, not {interval}")
    return interval


SamplerName = Literal[
    "euler", "heun", "ab2", "dopri5", "dpmpp_2m", "ddim", "ancestral", "euler_maruyama", "sde_heun"
]
Spacing = Literal["uniform", "log_snr", "karras", "shifted"]
DiffusionName = Literal[
    "sigma", "linear", "constant", "decreasing", "increasing_decreasing", "sbdm", "kl_eta"
]
ThresholdName = Literal["clip", "dynamic", "dynamic_if"]
Interval = Annotated[tuple[float, float], AfterValidator(_ascending)]


Steps = Annotated[int, Field(ge=1, le=10_000)]
"""Of a grid; papers take a thousand at most."""


class SolverChoices(Section):
    """What only some samplers let one choose; not given, it is as the sampler has it."""

    grid: Spacing | None = None
    """Spacing of the times: even in t, in the log signal-to-noise ratio, EDM's, or SD3's shift to noise by 3;
    the sampler's own when not given."""
    respacing: str | None = None
    """Knots of a discrete path to visit, instead of steps: 250, 100,50 (by sections), ddim50 (by stride) or mdm50 (as
    Matryoshka Diffusion does)."""
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    """Noise of ddim: 0 (when not given) none, 1 as much as ancestral."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of dopri5, relative and absolute: 1e-4 when not given."""
    diffusion: DiffusionName | None = None
    """Noise that an SDE adds and removes on its way (`ditkit list diffusions`): sigma when not given."""
    diffusion_norm: Annotated[float, Field(gt=0)] | None = None
    """Factor of that noise: 1 when not given."""
    last_step: Literal["mean", "tweedie", "euler", "none"] | None = None
    """An SDE's step to the data: without noise (mean), the estimate of it (tweedie), the ODE's (euler), or
    no other than the steps before (none); mean when not given."""
    last_step_size: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Time at which an SDE takes it: 0.04 when not given."""


class SamplingConfig(SolverChoices):
    """Sampler, steps and guidance; kept in the recipe so that a snapshot knows how it is best used."""

    sampler: SamplerName = "ab2"
    """`ditkit list samplers` says which is for what."""
    steps: Steps = 10
    """Steps of the grid; heun asks the network twice in each (in the last once where it predicts the data)."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Classifier-free guidance scale; 1 is off."""
    interval: Interval = (0.0, 1.0)
    """Times t between which guidance is on (0 data, 1 noise)."""
    guidance_channels: Annotated[int, Field(ge=1)] | None = None
    """Guide only so many of the first channels: 3 samples as the released DiT and SiT code; all if not given."""

    level_guidance: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Of a pyramid of resolutions: a guidance scale for each level, highest first, instead of one for all."""
    threshold: ThresholdName | None = None
    """Keep the estimate of clean pixels between -1 and 1: clip cuts; dynamic divides by the 99.5 % quantile of each
    image's sizes first where that is larger than 1, dynamic_if by the 95 % quantile but at most 1.5."""

    @model_validator(mode="after")
    def _sampler_takes_the_choices(self) -> "SamplingConfig":
        for choice in SolverChoices.model_fields:
            if getattr(self, choice) is not None and choice not in SAMPLERS[self.sampler].choices:
                takers = [name for name, entry in SAMPLERS.items() if choice in entry.choices]
                raise ValueError(
                    f"--{choice.replace('_', '-')} {getattr(self, choice)}: sampler {self.sampler} has no such "
                    f"choice; leave it out, or take --sampler {' or '.join(takers)}"
                )
        return self

    def override(self, given: Mapping[str, Any]) -> "SamplingConfig":
        """What is given and not None over this; of this, what another sampler has no use for is left out.

        InputError when what is given is out of range or nothing for its sampler.
        """
        fields = {name: given[name] for name in SamplingConfig.model_fields if given.get(name) is not None}
        name = fields.get("sampler", self.sampler)
        if name not in SAMPLERS:
            raise InputError(f"unknown --sampler {name!r}; choose one of: {', '.join(SAMPLERS)}")
        if "steps" in fields and SAMPLERS[name].adaptive:
            raise InputError(f"--steps {fields['steps']}: {name} chooses its own steps; give --tolerance")
        if "steps" in fields and "respacing" in fields:
            raise InputError(
                f"--steps {fields['steps']} and --respacing {fields['respacing']}: both say which times; give one"
            )
        unfit = set(SolverChoices.model_fields) - SAMPLERS[name].choices.keys()
        return SamplingConfig.checked(self.model_dump(exclude=unfit) | fields, "")

    @property
    def choices(self) -> dict[str, Any]:
        """Every choice this sampler has, with the value it takes."""
        own = SAMPLERS[self.sampler].choices
        return {name: own[name] if (value := getattr(self, name)) is None else value for name in own}

    def times(self, transport: Transport, layout: Layout | None = None) -> Tensor:
        """The times the sampler visits, of states of that layout; InputError for a transport that does not have
        them."""
        entry = SAMPLERS[self.sampler]
        steps = 1 if entry.adaptive else self.steps
        times = time_grid(transport, entry.use, steps, **_those(time_grid, self.choices))
        return transport.for_size(times, layout)

    @property
    def run(self) -> Callable[..., Tensor]:
        """The sampler with its choices made."""
        entry = SAMPLERS[self.sampler]
        return partial(entry.run, **_those(entry.step, self.choices))

    def nfe(self, grid: Tensor, transport: Transport) -> int | None:
        """Evaluations of the network for an image (a guided one counts once); None where the sampler decides."""
        solver = SAMPLERS[self.sampler]
        return (
            None if solver.adaptive else solver.evaluations(len(grid) - 1, transport.predict, **self.choices)
        )


def _those(function: Callable, choices: Mapping[str, Any]) -> dict[str, Any]:
    """The choices that a function takes, as keywords."""
    return {name: value for name, value in choices.items() if name in keywords(function)}
