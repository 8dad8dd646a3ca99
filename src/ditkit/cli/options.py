"""Flags that several verbs share."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ditkit.config import Section
from ditkit.device import DeviceName, Precision
from ditkit.errors import InputError
from ditkit.pipeline import Pipeline, nfe
from ditkit.sampling.config import Interval


def check_writable(folder: Path) -> None:
    """InputError when `folder` cannot be made or written to; said before the long work, not after."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"--out {folder}: {existing} is not a folder that can be written to; give another")


class SamplingOptions(Section):
    """How to sample; what is not given is as in the recipe."""

    sampler: str | None = None
    """Solver; `ditkit list samplers` says which is for what."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Steps of the solver; the evaluations of the network (NFE) are printed."""
    guidance: Annotated[float, Field(ge=0)] | None = None
    """Classifier-free guidance scale; 1 is off."""
    interval: Interval | None = None
    """Times between which guidance is on: 0 is data, 1 is noise."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Image k is made from seed + k, whatever the batch."""
    batch: Annotated[int, Field(ge=1)] = 100
    """Images sampled at once."""
    precision: Precision = "fp32"
    """fp32 makes images independent of the batch; bf16 can be faster."""
    compile: bool = False
    """Compile the network first: pays for many images (needs a C++ compiler on a CPU)."""
    device: DeviceName = "auto"
    """Where to sample."""

    def generate(self, pipeline: Pipeline, labels, count: int):
        """`count` images of these labels (None: unlabelled), with a progress bar."""
        if self.compile:
            pipeline.compile()
        return pipeline.generate(
            {} if labels is None else {"label": labels},
            seeds=range(self.seed, self.seed + count),
            sampler=self.sampler,
            steps=self.steps,
            guidance=self.guidance,
            interval=self.interval,
            batch=self.batch,
            precision=self.precision,
            progress=True,
        )

    def protocol(self, pipeline: Pipeline) -> dict:
        """What decides these samples, for the record."""
        defaults = pipeline.recipe.sample
        sampler, steps = self.sampler or defaults.sampler, self.steps or defaults.steps
        return {
            "recipe": pipeline.recipe.name,
            "weights": {"ema": True, **pipeline.record},
            "sampler": sampler,
            "steps": steps,
            "nfe": nfe(sampler, steps),
            "guidance": defaults.guidance if self.guidance is None else self.guidance,
            "interval": self.interval or defaults.interval,
            "first_seed": self.seed,
            "precision": self.precision,
            "device": str(pipeline.device),
        }
