"""`ditkit bench --study NAME`: what a training step of each of a study's recipes takes, in turn."""

from collections.abc import Iterator
from statistics import median

from ditkit.benchmarks.latents import CPU
from ditkit.benchmarks.training import Worker
from ditkit.cli.measured import MeasuredCommand, machine, threads, write
from ditkit.cli.parsing import parse
from ditkit.errors import InputError
from ditkit.lazy import loaded
from ditkit.processes import joined
from ditkit.scoring import software
from ditkit.studies import STUDIES
from ditkit.timing import Contender


class StudyBenchCommand(MeasuredCommand):
    """Time a training step of each recipe of a study, in turn, on images of no content: an ingredient by the clock.

    The figure is an image's time in terms of the first cell's. Leave the machine alone meanwhile.
    """

    study: str
    """The study, as in `ditkit list studies`."""
    cells: tuple[str, ...] = ()
    """Only these cells; all by default."""


def run(argv: list[str]) -> None:
    command = parse(StudyBenchCommand, argv, "bench")
    if command.study not in STUDIES:
        raise InputError(f"unknown study {command.study!r}; choose one of: {', '.join(STUDIES)}")
    command.check()
    cells = loaded(STUDIES[command.study]).cells()
    if unknown := set(command.cells) - set(cells):
        raise InputError(f"--cells {sorted(unknown)[0]}: no such cell; the study has {', '.join(cells)}")
    with threads(command.threads), joined(CPU) as processes:
        recipes = {name: cells[name].recipe for name in command.cells or cells}
        workers = {
            name: Worker(recipe, recipe.train.batch, processes, compiled=command.compile)
            for name, recipe in recipes.items()
        }
        contenders = [Contender("step", name, worker.step) for name, worker in workers.items()]
        command.measure(contenders)
        where = machine()
    record = {
        "machine": where,
        "software": software(),
        "study": command.study,
        "rounds": command.rounds,
        "compiled": command.compile,
        "rows": list(_rows(contenders, {name: recipe.train.batch for name, recipe in recipes.items()})),
    }
    print("\n".join(_report(record)))
    write(record, command.out)


def _rows(contenders: list[Contender], batches: dict[str, int]) -> Iterator[dict]:
    """Milliseconds of a step, and an image's time in terms of the first's by the median round."""
    first = contenders[0]
    for contender in contenders:
        size = batches[first.name] / batches[contender.name]
        yield {
            "cell": contender.name,
            "batch": batches[contender.name],
            "ms": 1000 * contender.median,
            "cost": median(size * own / its for own, its in zip(contender.times, first.times, strict=True)),
            "times_ms": [1000 * value for value in contender.times],
        }


def _report(record: dict) -> Iterator[str]:
    width = max(len(row["cell"]) for row in record["rows"])
    yield f"{'':{width}s}{'batch':>8s}{'ms a step':>12s}{'cost of an image':>18s}"
    for row in record["rows"]:
        yield f"{row['cell']:{width}s}{row['batch']:8d}{row['ms']:12.1f}{row['cost']:18.2f}"
    there, versions = record["machine"], record["software"]
    yield (
        f"(relative to {record['rows'][0]['cell']}, medians of the rounds' ratios)\n"
        f"{record['study']}, {'compiled' if record['compiled'] else 'eager'}; {there['cpu']}, {there['threads']} threads, "
        f"torch {versions['torch']}, ditkit {versions.get('commit', versions['ditkit'])}"
    )
