"""`ditkit convert RUN --out DIR`: a run as a snapshot, the small folder to share."""

from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from ditkit.cli.options import check_writable
from ditkit.cli.parsing import parse
from ditkit.config import Section
from ditkit.pipeline import load

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ConvertCommand(Section):
    """Write the moving average of a run as a snapshot: model.safetensors and recipe.json.

    A snapshot is what `sample`, `eval` and `--init` read; it holds nothing that is needed to go on
    training.
    """

    run: Annotated[str, tyro.conf.Positional]
    """A run's folder, or a snapshot."""
    out: Path
    """The folder to write."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16 halves the file and rounds the weights."""


def run(argv: list[str]) -> None:
    command = parse(ConvertCommand, argv, "convert")
    check_writable(command.out)
    folder = load(command.run, "cpu").save(command.out, DTYPES[command.dtype])
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder}: {size:,} bytes\nnext: ditkit sample {folder}")
