"""What the benches have in common: threads, the machine, the file of the record."""

import contextlib
import json
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from ditkit.errors import InputError


def check_folder_of(file: Path | None) -> None:
    """InputError, before the long work, when there is no folder to write `file` in."""
    if file is not None and not file.parent.is_dir():
        raise InputError(f"--out {file}: the folder {file.parent} does not exist")


def write(record: dict, file: Path | None) -> None:
    """The record as JSON, where a file was asked for."""
    if file is not None:
        file.write_text(json.dumps(record, indent=1) + "\n")
        print(file)


def machine() -> dict:
    """Where something was measured."""
    return {"name": platform.node(), "cpu": _cpu_name(), "threads": torch.get_num_threads()}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Torch with that many threads; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
