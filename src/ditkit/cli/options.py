"""Flags that several verbs share."""

import json
import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ditkit.cli.verbs import to_type
from ditkit.device import Compile, DeviceName, Precision
from ditkit.errors import InputError
from ditkit.pipeline import Pipeline, Sampling
from ditkit.recipe import Recipe
from ditkit.records import finite, read_json
from ditkit.sampling.config import Interval, SolverChoices, Steps, ThresholdName


def check_writable(folder: Path) -> None:
    """InputError when `folder` cannot be made or written to; said before the long work, not after."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"--out {folder}: {existing} is not a folder that can be written to; give another")


def check_new(file: Path, replace: bool) -> None:
    """InputError, before the long work, where an output cannot be written, or is there already and not to be replaced."""
    check_writable(file.parent)
    if file.is_dir():
        raise InputError(f"--out {file}: it is a folder; name a file")
    if file.exists() and not replace:
        raise InputError(
            f"--out {file}: it is there already; give another --out, or --replace to write over it"
        )


def numbered_folders(folder: Path) -> Iterator[Path]:
    """FOLDER, FOLDER-2, FOLDER-3, ...: for what is not to replace what is there."""
    yield folder
    for number in count(2):
        yield folder.with_name(f"{folder.name}-{number}")


def own_folder(folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    """The first of FOLDER, FOLDER-2, ... that holds no record of that name, or the same one."""
    same = json.loads(json.dumps(finite(record)))

    def free(some: Path) -> bool:
        try:
            return not (some / name).exists() or read_json(some / name) == same
        except InputError:  # damaged
            return False

    return next(some for some in numbered_folders(folder) if free(some))


def next_sample(recipe: Recipe, where: Path) -> str:
    """The command that samples from a run or a snapshot."""
    prompt = ["--prompt", "TEXT"] if recipe.text else []
    return to_type("sample", where, *prompt, *lower_levels(recipe))


def lower_levels(recipe: Recipe) -> list[str]:
    """The flag that a model of a cascade is not sampled without."""
    return [] if recipe.transport.cascade is None else ["--lower", "RUN"]


class SolverOptions(SolverChoices):
    """How to sample, guidance apart; what is not given is as in the recipe."""

    sampler: str | None = None
    """Solver; `ditkit list samplers` says which is for what."""
    steps: Steps | None = None
    """Steps of the solver; the evaluations of the network (NFE) are printed."""
    interval: Interval | None = None
    """Times between which guidance is on: 0 is data, 1 is noise."""
    guidance_channels: Annotated[int, Field(ge=1)] | None = None
    """Guide only so many of the first channels: 3 samples as the released DiT and SiT code."""
    level_guidance: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Of a model of several resolutions: a guidance scale for each, highest first, instead of --guidance."""
    threshold: ThresholdName | None = None
    """Keep the estimate of clean pixels in bounds: clip, dynamic or dynamic_if."""
    lower: str | None = None
    """For a model of a cascade: the run or snapshot that makes its lower levels."""
    lower_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Time of the noise put on them, at most what the model was trained with."""
    weak: str | None = None
    """A worse run or snapshot to guide away from (autoguidance), instead of from "no class"."""
    negative: str | None = None
    """A prompt to guide away from, instead of from "no text"."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Image k is made from seed + k, whatever the batch."""
    batch: Annotated[int, Field(ge=1)] = 100
    """Images sampled at once."""
    precision: Precision = "fp32"
    """fp32 makes images independent of the batch; bf16 can be faster."""
    compile: Compile = "auto"
    """Compile the network first. auto: where a compiler works (a C++ compiler on a CPU) and there are images enough to pay
    for it."""
    device: DeviceName = "auto"
    """Where to sample."""

    @property
    def how(self) -> Sampling:
        """What `Pipeline.generate` and `sampled` take."""
        choices: Sampling = {name: getattr(self, name) for name in SolverChoices.model_fields}  # type: ignore
        return {
            **choices,
            "sampler": self.sampler,
            "steps": self.steps,
            "interval": self.interval,
            "guidance_channels": self.guidance_channels,
            "level_guidance": self.level_guidance,
            "threshold": self.threshold,
            "lower": self.lower,
            "lower_noise": self.lower_noise,
            "weak": self.weak,
            "negative": self.negative,
            "batch": self.batch,
            "precision": self.precision,
            "progress": True,
        }

    def compile_for(self, pipeline: Pipeline, images: int, how: Sampling | None = None) -> bool:
        """Compile the network, as chosen, to sample so many images; whether it is."""
        return pipeline.compile(self.compile, images * pipeline.tokens(**(self.how if how is None else how)))


class SamplingOptions(SolverOptions):
    """How to sample; what is not given is as in the recipe."""

    guidance: Annotated[float, Field(ge=0)] | None = None
    """Classifier-free guidance scale; 1 is off."""

    @property
    def how(self) -> Sampling:
        return {**super().how, "guidance": self.guidance}
