"""`ditkit eval WHAT`: score a run, a snapshot, a folder or an .npz file against a data set."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from pydantic import Field
from torch import Tensor

from ditkit.cli.options import SamplingOptions, check_writable
from ditkit.cli.parsing import data_section, parse
from ditkit.data import DATA, DataConfig, Folder, load_all
from ditkit.errors import InputError
from ditkit.evaluation import evaluate
from ditkit.pictures import grid
from ditkit.pipeline import Pipeline, load
from ditkit.scoring import balanced_labels, in_batches, ruler, software, table


class EvalCommand(SamplingOptions):
    """Fréchet distance and class accuracy in the features of the data set's own frozen classifier."""

    what: Annotated[str, tyro.conf.Positional]
    """A run, a snapshot, a folder of images (one sub-folder per class) or an .npz file with arr_0."""
    n: Annotated[int, Field(ge=2)] = 2000
    """Images to sample from a run, the same number of every class."""
    data: str | None = None
    """Data set to compare with; a run knows its own."""
    classifier: Path | None = None
    """A classifier made by `ditkit classifier`, for data that none is bundled for."""
    out: Path | None = None
    """Folder for report.json and samples.png; WHAT/eval for a run, otherwise ./eval."""


def run(argv: list[str]) -> None:
    command = parse(EvalCommand, argv, "eval")
    path = Path(command.what)
    from_files = path.suffix == ".npz" or (path.is_dir() and not (path / "recipe.json").exists())
    out = command.out or (path / "eval" if path.is_dir() and not from_files else Path("eval"))
    check_writable(out)
    pipeline = None if from_files else load(command.what, command.device)
    data = _data(command, pipeline)
    measure = ruler(data, data.kind, command.classifier)  # before the long work: it may refuse
    if pipeline is None:
        images, labels, protocol = _read(path, data)
    else:
        images, labels, protocol = _sample(command, pipeline)
    protocol |= {"reference": f"{data.kind} train", **software()}
    report = evaluate(in_batches(images, labels), measure.classifier, measure.reference, protocol=protocol)
    rows = [(command.what[-24:], report)]
    if measure.floor is not None:
        rows.append(("held-out real images", measure.floor))
    print(table(rows))
    print(
        f"features: {report.classifier} classifier {report.classifier_hash[:12]}, {measure.reference.count} real images"
    )
    out.mkdir(parents=True, exist_ok=True)
    floor = None if measure.floor is None else measure.floor.frechet
    record = report.model_dump(mode="json") | {"train_versus_test": floor}
    (out / "report.json").write_text(json.dumps(record, indent=1) + "\n")
    grid(images[:100], 10).save(out / "samples.png")
    print(f"{out / 'report.json'}\n{out / 'samples.png'}")


Images = tuple[Tensor, Tensor | None, dict]


def _data(command: EvalCommand, pipeline: Pipeline | None) -> DataConfig:
    """The data set to compare with: the one named, or the model's own."""
    if command.data is not None:
        return data_section(command.data)
    if pipeline is None:
        raise InputError(
            f"--data: say which data set {command.what} is compared with: {', '.join(DATA)}, or a folder"
        )
    return pipeline.recipe.data


def _sample(command: EvalCommand, pipeline: Pipeline) -> Images:
    labels = balanced_labels(command.n, pipeline.classes) if pipeline.classes else None
    images = command.generate(pipeline, labels, command.n)
    return images, labels, command.protocol(pipeline) | {"labels": "balanced"}


def _read(path: Path, data: DataConfig) -> Images:
    if path.is_dir():
        images, labels = load_all(Folder(path=path, size=data.size, channels=data.channels))
        return images, labels, {"files": str(path)}
    try:
        with np.load(path, allow_pickle=False) as file:
            images = torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2)
            labels = torch.from_numpy(file["labels"]).long() if "labels" in file else None
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path}: not an .npz file with arr_0 of shape (N, H, W, C) ({error})") from None
    return images, labels, {"files": str(path)}
