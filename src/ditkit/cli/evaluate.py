"""`ditkit eval WHAT`: score a run, a snapshot, a folder or an .npz file against a reference."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from ditkit.cli.kinds import data_section
from ditkit.cli.options import SamplingOptions, check_new, own_folder
from ditkit.cli.parsing import parse
from ditkit.cli.shapes import Positional
from ditkit.data import DATA, DataSection, Folder
from ditkit.device import pick_device
from ditkit.errors import InputError
from ditkit.evaluation import Statistics
from ditkit.pictures import grid, pairs, save_picture
from ditkit.pipeline import Pipeline, load
from ditkit.processes import Processes, apart, joined
from ditkit.records import write_json
from ditkit.scoring import (
    Ruler,
    Samples,
    card_line,
    evaluate,
    files,
    held_out,
    measure,
    nearest_images,
    report_of,
    rulers,
    sampled,
    table,
)
from ditkit.scoring.rulers import class_names
from ditkit.scoring.samples import Balance, collected, image_folder, keeping

SHOWN = 100  # images of samples.png
REPORT, SAMPLES, NEAREST = "report.json", "samples.png", "nearest.png"


class EvalCommand(SamplingOptions):
    """Fréchet distance (FID, sFID), Inception Score, precision and recall, kernel distance, CLIP score, class
    accuracy, authenticity, caption retrieval: in the features of one or several networks, with the whole protocol.

    A value is worth comparing only with others of the same network, reference and N.
    """

    what: Annotated[str, Positional]
    """A run, a snapshot, a folder of images (one sub-folder per class, or none), one that `ditkit sample --png` or
    `ditkit sample --npz` wrote, or an .npz file with arr_0."""
    n: Annotated[int, Field(ge=2)] = 2000
    """Images to sample from a run; the papers' FID-50K takes 50000."""
    labels: Balance = "balanced"
    """Labels to sample: the same number of every class; drawn at random, as the papers do; or each as often as in the
    training data, for classes that are not alike."""
    features: tuple[str, ...] = ("classifier",)
    """Networks to measure with: the data's own classifier, inception, efficientnet, ... (`ditkit list features`);
    NAME=FILE takes weights of your own."""
    reference: str | None = None
    """What to compare with: a data set's name (its training split), a folder of real images, or an .npz of
    statistics (`ditkit reference`, or ADM's VIRTUAL_*.npz); a run knows its own data."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Crop the images of folders to squares of this size, as ADM does; needed when they are not squares of
    one size."""
    out: Path | None = None
    """Folder for report.json and samples.png; WHAT/eval for a run, otherwise ./eval, or where another report is there
    eval-2, eval-3, ..."""
    replace: bool = False
    """Write over a report that is there."""


def run(argv: list[str]) -> None:
    command = parse(EvalCommand, argv, "eval")
    with joined(pick_device(command.device)) as processes:
        _evaluate(command, processes)


def _evaluate(command: EvalCommand, processes: Processes) -> None:
    path = Path(command.what)
    from_files = path.suffix == ".npz" or (path.is_dir() and not (path / "recipe.json").exists())
    out = command.out or (path / "eval" if path.is_dir() and not from_files else Path("eval"))
    for name in (REPORT, SAMPLES, NEAREST):
        check_new(out / name, command.replace or command.out is None)
    pipeline = None if from_files else load(command.what, command.device)
    reference = find_reference(command.reference, pipeline, command.size)
    samples = _samples(command, path, pipeline, reference)
    data = pipeline.recipe.data if pipeline else None
    embed = pipeline.embed if pipeline and pipeline.recipe.text else None
    measured_with = rulers(command.features, reference, pick_device(command.device), data, embed)
    names = class_names(reference, measured_with)
    shown: list[Tensor] = []
    found = measure(keeping(samples, SHOWN, shown), measured_with)
    first = collected(shown)
    if not processes.first:  # which writes and prints what all have measured
        return
    with apart():
        _report(command, out, samples, measured_with, found, first, reference, names)


def _report(
    command: EvalCommand,
    out: Path,
    samples: Samples,
    measured_with: Sequence[Ruler],
    found: Sequence[Statistics],
    first: Tensor,
    reference: DataSection | Path,
    names: Sequence[str],
) -> None:
    """Print the scores and write report and pictures; `first` are the first samples, (n, C, H, W)."""
    report = report_of(samples, measured_with, found, names)
    rows = [(command.what, report)]
    floor = None if isinstance(reference, Path) else held_out(reference, report.images)
    if floor is not None:
        rows.append(("held-out real images", evaluate(floor, measured_with, names)))
    print(table(rows))
    card = card_line(report)
    print(f"\n{card}")
    record = report.model_dump(mode="json") | {"card": card}
    if floor is not None:
        record["held_out"] = rows[1][1].model_dump(mode="json", exclude={"protocol"})
    if command.out is None and not command.replace:
        out = own_folder(out, REPORT, record)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / REPORT, record)
    save_picture(grid(first, 10), out / SAMPLES)
    print(f"{out / REPORT}\n{out / SAMPLES}")
    (out / NEAREST).unlink(missing_ok=True)  # of a report that is written over
    if not isinstance(reference, Path):
        copied = nearest_images(found[0], measured_with[0], reference)
        save_picture(pairs(first[: len(copied)], copied, 10), out / NEAREST)
        print(f"{out / NEAREST}: below each sample the image of the reference that is nearest to it")


def find_reference(
    name: str | None, pipeline: Pipeline | None, size: int | None, flag: str | None = "reference"
) -> DataSection | Path:
    """The data set or the file that --reference names, or the model's own data."""
    if name is None:
        if pipeline is None:
            raise InputError(
                f"--reference: say what the images are compared with: {', '.join(DATA)}, a folder or an .npz file"
            )
        return pipeline.recipe.data
    path = Path(name)
    if path.suffix == ".npz":
        if not path.exists():
            raise InputError(f"{f'--{flag} ' if flag else ''}{path}: no such file")
        return path
    if pipeline is not None and path.is_dir():
        data = pipeline.recipe.data
        return Folder.checked(
            {"path": path, "size": data.size, "channels": data.channels}, f"--{flag} {path}"
        )
    data = data_section(name, flag=flag)
    if pipeline is not None and data.size != pipeline.recipe.data.size:
        raise InputError(
            f"--reference {name}: its images are {data.size} pixels wide, the model's {pipeline.recipe.data.size}; "
            "compare images of one size: resizing one side changes every score"
        )
    return image_folder(path, size) if isinstance(data, Folder) else data


def _samples(
    command: EvalCommand, path: Path, pipeline: Pipeline | None, reference: DataSection | Path
) -> Samples:
    if pipeline is None:
        return files(path, command.size, None if isinstance(reference, Path) else reference.channels)
    command.compile_for(pipeline, command.n)
    return sampled(
        pipeline,
        command.n,
        first_seed=command.seed,
        labels=command.labels,
        request=command.request(),
        progress=True,
    )
