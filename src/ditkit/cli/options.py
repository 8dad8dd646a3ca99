"""Flags that several verbs share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ditkit.cli.verbs import to_type
from ditkit.device import Compile, DeviceName
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.records import finite, read_json
from ditkit.sampling.config import FrameSettings, GuidanceSettings, SamplingRequest, SharedRequest

if TYPE_CHECKING:
    from ditkit.pipeline import Pipeline


def check_writable(folder: Path) -> None:
    """InputError when `folder` cannot be made or written to; checked before the long work, not after."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"--out {folder}: {existing} is not a folder that can be written to; give another")


def check_empty(folder: Path, replace: bool) -> None:
    """InputError, before the long work, where a folder cannot be written, or holds something that is not to be replaced."""
    check_writable(folder)
    if not replace and folder.is_dir() and any(file.name[0] != "." for file in folder.iterdir()):
        raise InputError(
            f"--out {folder}: the folder is not empty; give another, or --replace to write over what is there"
        )


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


class SolverOptions(SharedRequest):
    """How to sample, guidance apart; by default as in the recipe."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Image k is made from seed + k, whatever the batch."""
    batch: Annotated[int, Field(ge=1)] = 100
    """Images sampled at once."""
    compile: Compile = "auto"
    """Compile the network first. auto: where a compiler works (a C++ compiler on a CPU) and there are images enough to pay
    for it."""
    device: DeviceName = "auto"
    """Where to sample."""

    def request(self, **values: Any) -> SamplingRequest:
        """What these flags ask for, and the other `values`. InputError where it cannot be."""
        parts = [part for part in (SharedRequest, GuidanceSettings, FrameSettings) if isinstance(self, part)]
        own = {name: getattr(self, name) for part in parts for name in part.model_fields}
        return SamplingRequest.of(own | values)

    def compile_for(self, pipeline: Pipeline, images: int, request: SamplingRequest | None = None) -> bool:
        """Compile the network, as chosen, to sample so many images; whether it is."""
        return pipeline.compile(self.compile, images, pipeline.tokens(request or self.request()))


class SamplingOptions(SolverOptions, GuidanceSettings):
    """How to sample; by default as in the recipe."""
