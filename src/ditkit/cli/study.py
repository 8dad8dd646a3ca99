"""`ditkit study NAME`: run an experiment of several trainings, or draw what is there of it."""

import logging
from pathlib import Path
from typing import Annotated

from ditkit.cli.options import check_writable
from ditkit.cli.parsing import parse
from ditkit.cli.shapes import Positional
from ditkit.config import Section
from ditkit.device import Compile, DeviceName, check_compiler, no_compiler, pick_device
from ditkit.errors import InputError
from ditkit.files import LOCK, owned
from ditkit.records import write_whole

log = logging.getLogger(__name__)


class StudyCommand(Section):
    """Run a study: train and score its cells, one after another, then write its table and figures.

    Every score is cached: the same command goes on where it stopped. The same command in several
    processes (one thread each on a CPU), by torchrun or by hand, shares the cells.
    """

    name: Annotated[str, Positional]
    """The study, as in `ditkit list studies`."""
    cells: tuple[str, ...] = ()
    """Only these cells; all by default."""
    draw: bool = False
    """Run nothing: only write table and figures of the cells that are there."""
    out: Path | None = None
    """Folder of the cells' records, the table and the figures; studies/NAME by default."""
    runs: Path | None = None
    """Folder of the trainings; runs/studies/NAME by default."""
    compile: Compile = "auto"
    """Compile the networks, all of them, so that their times can be compared; auto: where a compiler works."""
    device: DeviceName = "auto"
    """Where to train."""


def run(argv: list[str]) -> None:
    command = parse(StudyCommand, argv, "study")
    from ditkit.lazy import loaded
    from ditkit.studies import STUDIES
    from ditkit.studies.cells import alike, read_cells, run_cells

    if command.name not in STUDIES:
        raise InputError(f"unknown study {command.name!r}; choose one of: {', '.join(STUDIES)}")
    study = loaded(STUDIES[command.name])
    out = command.out or Path("studies") / command.name
    runs = command.runs or Path("runs") / "studies" / command.name
    check_writable(out)
    cells = study.cells()
    if unknown := set(command.cells) - set(cells):
        raise InputError(f"--cells {sorted(unknown)[0]}: no such cell; the study has {', '.join(cells)}")
    if not command.draw:
        wanted = {name: cell for name, cell in cells.items() if name in command.cells or not command.cells}
        device = pick_device(command.device)
        if command.compile == "on":
            check_compiler(device, "--compile off")
        reason = no_compiler(device) if command.compile == "auto" else None
        if reason:
            log.info(f"--compile auto: off, {reason}")
        compiled = command.compile != "off" and reason is None
        from ditkit.processes import apart, started

        processes = started()
        with apart():  # each works on cells of its own
            run_cells(
                alike(wanted, compiled),
                out / "cells",
                runs,
                processes.own_device(device),
                until_all=processes.several,
            )
        if not processes.first:
            return
    results = read_cells(cells, out / "cells")
    if not results:
        raise InputError(
            f"{out / 'cells'}: no cell of the study {command.name} is there; name the folder that holds them by --out, or run "
            f"it: ditkit study {command.name}"
        )
    finished = sum(record["finished"] for record in results.values())
    with owned(out):
        text = study.report(results, out)
        if finished < len(cells):
            text = f"PARTIAL: {finished} of {len(cells)} cells are finished.\n\n{text}"
        write_whole(out / "table.md", f"{text}\n".encode())
    print(text)
    print("\n".join(str(path) for path in sorted(out.iterdir()) if path.is_file() and path.name != LOCK))
