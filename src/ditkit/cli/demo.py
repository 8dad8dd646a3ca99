"""`ditkit demo`: train, sample, score and draw on real digits, in a few minutes on two CPU cores."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from ditkit.cli.parsing import parse
from ditkit.cli.verbs import to_type
from ditkit.config import Section
from ditkit.data import load_all
from ditkit.device import DeviceName, pick_device
from ditkit.pictures import class_rows, side_by_side
from ditkit.pipeline import load
from ditkit.recipes import recipe
from ditkit.records import write_json
from ditkit.scoring import balanced_labels, card_line, evaluate, held_out, rulers, sampled, table

COLUMNS = 8  # of each panel of samples.png


class DemoCommand(Section):
    """Train the recipe `digits` on scikit-learn's real handwritten digits, sample every class, score."""

    out: Path = Path("runs/demo")
    """Folder of the run; run again, the demo resumes where it stopped."""
    images: Annotated[int, Field(ge=1)] | None = None
    """Train on fewer images than the recipe says, for a quick try."""
    samples: Annotated[int, Field(ge=2)] = 1000
    """Images to sample and score."""
    device: DeviceName = "auto"
    """Where to run."""


def run(argv: list[str]) -> None:
    command = parse(DemoCommand, argv, "demo")
    from ditkit.training import train

    start = time.perf_counter()
    chosen = recipe("digits")
    if command.images is not None:
        chosen = chosen.replace(train={"images": command.images})
    out, device = command.out, pick_device(command.device)
    print(f"1/3 training `digits`: {chosen.train.images:,} images seen, {chosen.backbone.kind} on {device}")
    train(chosen, out, device=device)

    print(
        f"2/3 sampling {command.samples} images, {chosen.sample.sampler}, guidance {chosen.sample.guidance}"
    )
    pipeline = load(out, device)
    data = pipeline.recipe.data
    measure = rulers(["classifier"], data)
    samples = sampled(pipeline, command.samples, batch=250, progress=True)
    made = list(samples.batches)  # kept, to be looked at
    images, labels = torch.cat([part for part, _ in made]), balanced_labels(command.samples, pipeline.classes)

    print("3/3 scoring")
    report = evaluate(replace(samples, batches=iter(made)), measure)
    real, real_labels = load_all(data, "train")
    floor_samples = held_out(data, command.samples)
    if real_labels is None or floor_samples is None:
        raise RuntimeError("the digits have labels and a held-out part")
    floor = evaluate(floor_samples, measure)
    seconds = time.perf_counter() - start

    panels = [
        ("real", class_rows(real, real_labels, pipeline.classes, COLUMNS)),
        ("generated", class_rows(images, labels, pipeline.classes, COLUMNS)),
    ]
    side_by_side(panels, [str(name) for name in range(pipeline.classes)], out / "samples.png")
    record = report.model_dump(mode="json") | {
        "card": card_line(report),
        "held_out": floor.first.frechet,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
    }
    write_json(out / "report.json", record)

    print(table([("generated", report), ("held-out real images", floor)]))
    accuracy = report.first.labels.accuracy if report.first.labels else None
    print(
        f"\n{accuracy:.1%} of the samples are read as the class asked for; Fréchet distance "
        f"{report.first.frechet:.2f} to the training images (held-out real images: {floor.first.frechet:.2f}); "
        f"{seconds:.0f} s in all.\n"
    )
    for name in ("samples.png", "loss.png", "report.json"):
        print(f"  {out / name}")
    print(
        f"\nNext:\n"
        f"  {to_type('sample', out, '--labels', 3, 7, '--guidance', 3)}\n"
        f"  {to_type('train', 'fashion-sit')}     Fashion-MNIST (apt install dataset-fashion-mnist)\n"
        f"  {to_type('train', 'fashion-sit', '--data', 'DIR', '--data.channels', 3)}     "
        "your own images, a sub-folder per class\n"
        f"  {to_type('list')}     everything that can be chosen"
    )
