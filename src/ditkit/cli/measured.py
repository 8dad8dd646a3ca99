"""What the benches have in common: rounds, threads, the machine, the file of the record."""

import contextlib
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from ditkit.benchmarks.latents import CPU
from ditkit.cli.options import check_new
from ditkit.config import Section
from ditkit.device import check_compiler
from ditkit.errors import InputError
from ditkit.progress import progress_bar
from ditkit.records import write_json
from ditkit.timing import Contender, measure


class MeasuredCommand(Section):
    """Flags of the benches that measure several things in turn."""

    rounds: Annotated[int, Field(ge=1)] = 7
    """Times each is measured, in turn; medians are printed."""
    compile: bool = False
    """With blocks compiled; the first calls then take up to minutes."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of torch; as many as torch chooses by default."""
    out: Path | None = None
    """Write the record, every time measured included, to this JSON file."""
    replace: bool = False
    """Write over a file that is there."""

    def check(self) -> None:
        """InputError, before the long work, for what can be known to fail after it."""
        if self.compile:
            check_compiler(
                CPU, "--no-compile", tried=False
            )  # or the first call would no longer start the compiler
        check_record(self.out, self.replace)

    def measure(self, contenders: list[Contender], what: str = "steps") -> None:
        """Time each in turn, as often as asked, with a bar."""
        with progress_bar((self.rounds + 2) * len(contenders), what, "call") as bar:
            measure(contenders, self.rounds, bar.update)


def check_record(file: Path | None, replace: bool) -> None:
    """InputError, before the long work, when there is no folder to write `file` in, or as of `check_new`."""
    if file is None:
        return
    if not file.parent.is_dir():
        raise InputError(f"--out {file}: the folder {file.parent} does not exist")
    check_new(file, replace)


def write(record: dict, file: Path | None) -> None:
    """Write the record as JSON, where --out names a file."""
    if file is not None:
        write_json(file, record)
        print(file)


def machine() -> dict:
    """Where something was measured."""
    return {"name": platform.node(), "cpu": _cpu_name(), "threads": torch.get_num_threads()}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
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
