"""`ditkit average RUN --width W --out FOLDER`: a snapshot of another average of a run's weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, model_validator

from ditkit.averages.profiles import Width
from ditkit.averaging import Averaged, kept
from ditkit.cli.options import check_empty, lower_levels, next_sample
from ditkit.cli.parsing import parse
from ditkit.cli.shapes import Positional
from ditkit.cli.verbs import to_type
from ditkit.config import Section
from ditkit.pipeline import Pipeline


class AverageCommand(Section):
    """Write a snapshot of another average of a run's weights than the one that is sampled by default.

    A power average of any width is made after the training, from those that it stored on the way (--train.averages
    power:width=0.05 power:width=0.1 --train.snapshot-images N); --name takes one that it kept. What is written is read by
    sample, eval and compare.
    """

    run: Annotated[str, Positional]
    """A run's folder."""
    out: Path
    """The folder to write; of --sweep the folder of those, one for each width."""
    width: Width | None = None
    """The spread of the images that count, as a share of all seen."""
    sweep: tuple[Width, ...] = ()
    """Several widths at once, and the command that compares them."""
    name: str | None = None
    """One of the run's own --train.averages, such as half_life:images=500000, as of its last checkpoint."""
    images: Annotated[int, Field(ge=1)] | None = None
    """The average after so many images; by default after the last that were stored."""
    replace: bool = False
    """Write over what is in the folder."""

    @model_validator(mode="after")
    def _one_way(self) -> "AverageCommand":
        given = [self.width is not None, bool(self.sweep), self.name is not None]
        if sum(given) != 1:
            raise ValueError("give one of --width, --sweep and --name")
        if self.name is not None and self.images is not None:
            raise ValueError(
                "--images: --name takes an average as of the last checkpoint; leave --images out"
            )
        return self


def run(argv: list[str]) -> None:
    command = parse(AverageCommand, argv, "average")
    check_empty(command.out, command.replace)
    folders = []
    for pipeline, folder in _found(command):
        pipeline.save(folder)
        folders.append(folder)
        missing = pipeline.record.get("missing")
        fitted = "" if missing is None else f", {missing:.2%} of its profile missing"
        print(
            f"{folder}: {pipeline.record['average']}, after {pipeline.record['images']:,} images{fitted}",
            flush=True,
        )
    if command.sweep:
        print(f"next: {to_type('compare', *folders, *lower_levels(pipeline.recipe))}")
    else:
        print(f"next: {next_sample(pipeline.recipe, command.out)}")


def _found(command: AverageCommand) -> Iterator[tuple[Pipeline, Path]]:
    """The models and where they go."""
    if command.name is not None:
        yield kept(command.run, command.name, device="cpu"), command.out
        return
    averaged, cpu = Averaged(Path(command.run)), torch.device("cpu")
    for width in command.sweep or (command.width,):
        assert width is not None
        folder = command.out / f"width-{width:g}" if command.sweep else command.out
        yield averaged.of_width(width, command.images, cpu), folder
