"""`ditkit demo`: train, sample, score and draw on real digits, in a few minutes on two CPU cores."""

import json
import time
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from ditkit.cli.options import SamplingOptions
from ditkit.cli.parsing import parse
from ditkit.config import Section
from ditkit.data import load_all
from ditkit.device import DeviceName, pick_device
from ditkit.evaluation import evaluate
from ditkit.pictures import class_rows, side_by_side
from ditkit.pipeline import load
from ditkit.recipes import recipe
from ditkit.scoring import balanced_labels, in_batches, ruler, software, table

COLUMNS = 8  # of each panel of samples.png


class DemoCommand(Section):
    """Train the recipe `digits` on scikit-learn's real handwritten digits, sample every class, score."""

    out: Path = Path("runs/demo")
    """Folder of the run; given again, the demo goes on where it stopped."""
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
    options = SamplingOptions(batch=250)
    labels = balanced_labels(command.samples, pipeline.classes)
    images = options.generate(pipeline, labels, command.samples)

    print("3/3 scoring")
    data = pipeline.recipe.data
    measure = ruler(data, data.kind)
    protocol = {**options.protocol(pipeline), "labels": "balanced", "reference": "digits train", **software()}
    report = evaluate(in_batches(images, labels), measure.classifier, measure.reference, protocol=protocol)
    seconds = time.perf_counter() - start

    real, real_labels = load_all(data, "train")
    if real_labels is None or measure.floor is None:
        raise RuntimeError("the digits have labels and a held-out part")
    panels = [
        ("real", class_rows(real, real_labels, pipeline.classes, COLUMNS)),
        ("generated", class_rows(images, labels, pipeline.classes, COLUMNS)),
    ]
    side_by_side(panels, [str(name) for name in range(pipeline.classes)], out / "samples.png")
    record = report.model_dump(mode="json") | {
        "train_versus_test": measure.floor.frechet,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
    }
    (out / "report.json").write_text(json.dumps(record, indent=1) + "\n")

    print(table([("generated", report), ("held-out real images", measure.floor)]))
    print(
        f"\n{report.accuracy:.1%} of the samples are read as the class asked for; Fréchet distance "
        f"{report.frechet:.2f} to the training images (held-out real images: {measure.floor.frechet:.2f}), "
        f"features of classifier {report.classifier_hash[:12]}; {seconds:.0f} s in all.\n"
    )
    for name in ("samples.png", "loss.png", "report.json"):
        print(f"  {out / name}")
    print(
        f"\nNext:\n  ditkit sample {out} --labels 3 7 --guidance 3\n"
        "  ditkit train fashion-sit          Fashion-MNIST (apt install dataset-fashion-mnist)\n"
        "  ditkit train fashion-sit --data DIR --data.channels 3     your own images, a sub-folder per class\n"
        "  ditkit list                       everything that can be chosen"
    )
