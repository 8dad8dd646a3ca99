"""`ditkit convert MODEL --out DIR`: any model as a snapshot, an official file or a folder of diffusers'."""

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from ditkit.cli.options import check_empty, next_sample
from ditkit.cli.parsing import parse
from ditkit.cli.shapes import Positional
from ditkit.config import Section
from ditkit.errors import InputError
from ditkit.hub import is_id, publish
from ditkit.interop import Kind, write_diffusers, write_official
from ditkit.pipeline import Pipeline, load
from ditkit.records import read_json

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ConvertCommand(Section):
    """Write a model in another form: by default as a snapshot, model.safetensors, recipe.json and a card.

    A snapshot is what `sample`, `eval` and `--init` read; it holds nothing that is needed to go on
    training. Official DiT, SiT and U-DiT files and folders of diffusers' are read as well, and nothing in them is
    ever run.
    """

    run: Annotated[str, Positional]
    """A run's folder, a snapshot, an official .pt or .safetensors file, or a folder of diffusers'."""
    out: Path
    """The folder to write; a new or an empty one."""
    replace: bool = False
    """Write over what is in the folder."""
    to: Literal["snapshot", "official", "diffusers"] = "snapshot"
    """official: a .pt file for the released DiT, SiT or U-DiT code; diffusers: a DiTTransformer2DModel folder."""
    push: str | None = None
    """Also publish the snapshot as OWNER/NAME on the Hugging Face Hub; the scores of RUN's last eval go into its card."""
    private: bool = False
    """Publish for yourself only."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16 halves the file and rounds the weights."""
    kind: Kind | None = None
    """What an official file is whose name does not say DiT or SiT."""
    heads: Annotated[int, Field(ge=1)] | None = None
    """Attention heads of an official file that has none of the released widths."""


def run(argv: list[str]) -> None:
    command = parse(ConvertCommand, argv, "convert")
    if command.push is not None and (command.to != "snapshot" or not is_id(command.push)):
        raise InputError(f"--push {command.push}: publishes a snapshot as OWNER/NAME; leave out --to")
    check_empty(command.out, command.replace)
    pipeline = load(command.run, "cpu", kind=command.kind, heads=command.heads)
    file, then = _write(command, pipeline)
    print(f"{file.parent}: {file.name}, {file.stat().st_size:,} bytes\n{then}")


def newest_report(run: Path) -> list[Path]:
    """The last that `ditkit eval` wrote into a run's folder; none where there is none."""
    return sorted(run.glob("eval*/report.json"), key=lambda file: file.stat().st_mtime_ns)[-1:]


def _write(command: ConvertCommand, pipeline: Pipeline) -> tuple[Path, str]:
    """The file of weights, and what to do with it."""
    dtype = DTYPES[command.dtype]
    if command.to == "official":
        file = write_official(command.out, pipeline.recipe, pipeline.backbone, dtype)
        return file, "next: a bare state dict, as the released code's --ckpt reads it"
    if command.to == "diffusers":
        file = write_diffusers(command.out, pipeline.recipe, pipeline.backbone, dtype)
        return file, f'next: diffusers.DiTTransformer2DModel.from_pretrained("{command.out}")'
    reports = [read_json(report) for report in newest_report(Path(command.run))]
    folder = pipeline.save(command.out, dtype, reports)
    if command.push:
        return folder / "model.safetensors", publish(folder, command.push, command.private)
    return folder / "model.safetensors", f"next: {next_sample(pipeline.recipe, folder)}"
