"""How samples are drawn: what a recipe keeps, and what a request sets when they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from ditkit.chosen import Chosen, chosen, name_of
from ditkit.config import OneOf, Section
from ditkit.device import Precision
from ditkit.errors import InputError, no_such
from ditkit.layout import Layout
from ditkit.lazy import torch
from ditkit.sampling import DIFFUSIONS, SAMPLERS, THRESHOLDS, time_grid
from ditkit.sampling.caching import CACHES
from ditkit.sampling.grids import SPACINGS
from ditkit.sampling.sde import LastStep
from ditkit.sampling.solver import keywords
from ditkit.transports import At, Transport

if TYPE_CHECKING:
    from torch import Tensor


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(f"must be two times with 0 <= low <= high <= 1, not {interval}")
    return interval


SamplerName = Annotated[str, OneOf(SAMPLERS)]
Spacing = Annotated[str, OneOf(SPACINGS)]
DiffusionName = Annotated[str, OneOf(DIFFUSIONS)]
ThresholdName = Annotated[str, OneOf(THRESHOLDS)]
CacheName = Annotated[str, Chosen(CACHES)]
Interval = Annotated[tuple[float, float], AfterValidator(_ascending)]


def _model(value: object) -> object:
    """A model, or where it is, as text."""
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str) or hasattr(value, "recipe"):
        return value
    raise ValueError(f"give a run or a snapshot, not a {type(value).__name__}")


Model = Annotated[str, PlainValidator(_model)]
"""The path of a run or snapshot, which is what a flag takes, or in Python a pipeline."""


def _tensor(value: object) -> object:
    if not isinstance(value, torch.Tensor):
        raise ValueError("Input should be an instance of Tensor")
    return value


if TYPE_CHECKING:
    Frames = Tensor
else:  # which names no class, so that it is imported only where there is a value
    Frames = Annotated[Any, AfterValidator(_tensor)]

Steps = Annotated[int, Field(ge=1, le=10_000)]
"""The number of steps of a grid; papers take a thousand at most."""


class SolverChoices(Section):
    """Settings of some samplers only; by default as the sampler has them."""

    grid: Spacing | None = None
    """Spacing of the times: even in t, in the log signal-to-noise ratio, EDM's, or SD3's shift to noise by 3;
    by default the sampler's own."""
    respacing: str | None = None
    """Knots of a discrete path to visit, instead of steps: 250, 100,50 (by sections), ddim50 (by stride) or mdm50 (as
    Matryoshka Diffusion does)."""
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    """Noise of ddim: 0 (by default) none, 1 as much as ancestral."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of dopri5, relative and absolute; by default 1e-4."""
    diffusion: DiffusionName | None = None
    """Noise that an SDE adds and removes on its way (`ditkit list diffusions`); by default sigma."""
    diffusion_norm: Annotated[float, Field(gt=0)] | None = None
    """Factor of that noise; by default 1."""
    last_step: LastStep | None = None
    """An SDE's last step, to the data: without noise (mean, the default), Tweedie's estimate of the data (tweedie),
    the ODE's step (euler), or no special one (none)."""
    last_step_size: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Time at which an SDE takes its last step; by default 0.04."""


class SolverSettings(SolverChoices):
    """A solver and how guidance and thresholds are used with it; by default as in the recipe."""

    sampler: SamplerName | None = None
    """`ditkit list samplers` says which is for what."""
    steps: Steps | None = None
    """Steps of the grid; heun evaluates the network twice in each (once in the last where it predicts the data)."""
    interval: Interval | None = None
    """Times t between which guidance is on (0 data, 1 noise)."""
    guidance_channels: Annotated[int, Field(ge=1)] | None = None
    """Guide only so many of the first channels: 3 samples as the released DiT and SiT code; all by default."""
    level_guidance: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """A guidance scale for each level of a pyramid of resolutions, highest first, instead of one for all."""
    guidance_path: Literal["whole", "dense"] | None = None
    """What guidance leads away from, without the condition: the whole network, or its dense blocks alone, which cost less
    (`backbone.sparse`)."""
    cache: CacheName | None = None
    """Spare blocks of the network at some evaluations (`ditkit list caches`), such as NAME:interval=3."""
    precision: Precision | None = None
    """fp32 makes images independent of the batch and of the machine, but for rounding; bf16 is faster where the machine has it
    (auto)."""
    threshold: ThresholdName | None = None
    """Keep the estimate of clean pixels between -1 and 1: clip cuts; dynamic first divides by the 99.5 % quantile of each
    image's absolute values where that is larger than 1, dynamic_if by the 95 % quantile but at most 1.5."""


class GuidanceSettings(Section):
    """The strength of guidance; by default as in the recipe."""

    guidance: Annotated[float, Field(ge=0)] | None = None
    """Classifier-free guidance scale; 1 is off, others cost twice the evaluations' rows, in one call."""


class SamplingConfig(SolverSettings, GuidanceSettings):
    """Sampler, steps and guidance; kept in the recipe so that a snapshot knows how it is best used."""

    sampler: SamplerName = "ab2"
    steps: Steps = 10
    interval: Interval = (0.0, 1.0)
    cache: CacheName = "none"
    guidance_path: Literal["whole", "dense"] = "whole"
    precision: Precision = "fp32"
    guidance: Annotated[float, Field(ge=0)] = 1.0

    @model_validator(mode="after")
    def _sampler_takes_the_choices(self) -> SamplingConfig:
        for choice in SolverChoices.model_fields:
            if getattr(self, choice) is not None and choice not in SAMPLERS[self.sampler].choices:
                takers = [name for name, solver in SAMPLERS.items() if choice in solver.choices]
                raise ValueError(
                    f"`{choice}` {getattr(self, choice)}: sampler {self.sampler} has no such "
                    f"choice; leave it out, or take `sampler` {' or '.join(takers)}"
                )
        return self

    @model_validator(mode="after")
    def _a_cache_needs_a_grid(self) -> SamplingConfig:
        if name_of(self.cache) != "none" and SAMPLERS[self.sampler].adaptive:
            raise ValueError(
                f"`cache` {self.cache}: sampler {self.sampler} chooses its times by the network's answers; leave the cache out "
                "or take another sampler"
            )
        return self

    @model_validator(mode="after")
    def _dense_blocks_guide_all(self) -> SamplingConfig:
        for field in ("guidance_channels", "level_guidance"):
            if self.guidance_path == "dense" and getattr(self, field):
                raise ValueError(
                    f"`{field}` {getattr(self, field)} is not for `guidance_path` dense, which guides all alike; leave one out"
                )
        return self

    def override(self, request: SolverSettings | GuidanceSettings) -> SamplingConfig:
        """These settings with those of a request over them; settings that another sampler has no use for are left out.

        InputError when a setting of the request is not one of its sampler's.
        """
        chosen = request.model_dump(include=set(SamplingConfig.model_fields), exclude_none=True)
        name = chosen.get("sampler", self.sampler)
        solver = SAMPLERS[name]
        if "steps" in chosen and solver.adaptive:
            raise InputError(f"`steps` {chosen['steps']}: {name} chooses its own steps; give `tolerance`")
        if "steps" in chosen and "respacing" in chosen:
            raise InputError(
                f"`steps` {chosen['steps']} and `respacing` {chosen['respacing']}: both say which times; give one"
            )
        unfit = set(SolverChoices.model_fields) - solver.choices.keys()
        return SamplingConfig.checked(self.model_dump(exclude=unfit) | chosen, "")

    @property
    def choices(self) -> dict[str, Any]:
        """Every choice this sampler has, with the value it takes."""
        own = SAMPLERS[self.sampler].choices
        return {name: own[name] if (value := getattr(self, name)) is None else value for name in own}

    def times(self, transport: Transport, layout: Layout | None = None) -> Tensor:
        """The times the sampler visits, of states of that layout; InputError for a transport that does not have
        them."""
        solver = SAMPLERS[self.sampler]
        steps = 1 if solver.adaptive else self.steps
        times = time_grid(transport, solver.use, steps, **_those(time_grid, self.choices))
        return transport.for_size(times, layout)

    @property
    def around(self) -> Callable[[Tensor, At], Any] | None:
        """What the cache puts around the network's blocks at an evaluation."""
        return None if name_of(self.cache) == "none" else chosen(CACHES, self.cache)

    @property
    def run(self) -> Callable[..., Tensor]:
        """The sampler with its choices made."""
        solver = SAMPLERS[self.sampler]
        return partial(solver.run, **_those(solver.step, self.choices))

    def nfe(self, grid: Tensor, transport: Transport) -> int | None:
        """Evaluations of the network for an image (a guided one counts once); None where the sampler decides."""
        solver = SAMPLERS[self.sampler]
        return (
            None if solver.adaptive else solver.evaluations(len(grid) - 1, transport.predict, **self.choices)
        )


class SharedRequest(SolverSettings):
    """What every command that samples lets one choose, but for the strength of guidance."""

    lower: Model | None = None
    """For a model of a cascade: the run or snapshot that makes its lower levels."""
    lower_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Time of the noise that is added to the lower levels, at most what the model was trained with."""
    weak: Model | None = None
    """A worse run or snapshot of the same kind to guide away from (autoguidance), instead of from "no class"."""
    negative: str | None = None
    """A prompt to guide away from, instead of from "no text"."""
    batch: Annotated[int, Field(ge=1)] = 64
    """Images sampled at once."""


class FrameSettings(Section):
    """Which frames and levels are sampled."""

    frames: Annotated[int, Field(ge=1)] | None = None
    """Frames of a clip, at once; the recipe's by default."""
    levels: str | None = None
    """Which resolution to make, of a model of several: 0, the highest, or 1, 2, ..., or all of them side by side."""


class SamplingRequest(SharedRequest, GuidanceSettings, FrameSettings):
    """All settings of sampling besides conditions and seeds; by default as in the model's recipe."""

    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Height and width in pixels, where the network takes others than those it was trained on."""
    start: Frames | None = None
    """The first frames of clips, kept as they are, for a model trained so (`transport.known_frames`): uint8
    (N or 1, C, H, W) or (N or 1, C, F', H, W)."""
    end: Frames | None = None
    """Likewise the last frames."""
    numbers: bool = False
    """Numbers, float32 in the range of the data (of pixels 0 to 255), not rounded, instead of uint8."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SamplingRequest:
        """InputError naming a value that there is not, with the nearest, or that cannot be."""
        for name in values:
            if name not in cls.model_fields:
                raise no_such("how to sample", name, cls.model_fields)
        return cls.checked(dict(values), "")

    def but(self, **values: Any) -> SamplingRequest:
        """The same with other values. InputError as of `of`."""
        return SamplingRequest.of({name: getattr(self, name) for name in self.model_fields_set} | values)


def _those(function: Callable, choices: Mapping[str, Any]) -> dict[str, Any]:
    """The choices that a function takes, as keywords."""
    return {name: value for name, value in choices.items() if name in keywords(function)}
