"""One network for every height and width: does it draw sizes it has never seen, and better than one that knows squares?

Fashion-MNIST cut to what each picture shows has 23 sizes, from 4 x 28 to 28 x 28 pixels; three are left out of training.
One DiT learns the others in buckets (`buckets`), packed in rows (`packed`) or with added instead of rotary positions
(`sincos`); the same network learns the uncut squares (`square`), as many images. All are asked for sizes that the first
three have seen and for those that none has, in the classes that real pictures of that size have.

Scored by Fashion-MNIST's classifier, pictures and samples alike in the middle of a black square of 28 pixels: the share
read as the class asked for, and the Fréchet distance to the training pictures of that size, for the sizes left out
pictures that no network has seen. Held-out pictures of the size say what a perfect model would reach at their number.

Command: ditkit study anysize. Cost: an hour of one CPU core with AMX. What came out: docs/results.md.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ditkit.data import load_size, spread
from ditkit.errors import InputError
from ditkit.evaluation import Statistics, bundled_classifier, frechet_distance, gather
from ditkit.pictures import side_by_side
from ditkit.pipeline import Pipeline
from ditkit.recipes import recipe
from ditkit.recipes.anysize import UNSEEN
from ditkit.studies.cells import Cell, Results
from ditkit.studies.figures import as_text, from_text

IMAGES = 180_000
SAMPLES = 500
SIDE = 28
MULTIPLE = 4
SIZES = (*UNSEEN, "12x28", "28x12", "20x28", "28x20")
"""Those left out, then some that were seen."""
SHOWN = 8  # samples of each size in the picture
REAL = "held-out pictures"


def cells() -> dict[str, Cell]:
    base = recipe("anysize-fashion").replace(
        train={"images": IMAGES, "preview_images": 0, "validate_images": 0, "checkpoint_images": IMAGES}
    )
    square = recipe("fashion-sit").data
    networks = {
        "buckets": base,
        "packed": base.replace(train={"packed": True}),
        "sincos": base.replace(backbone={"positions": "sincos"}),
        "square": base.with_data(square),
    }
    return {
        name: Cell(known.replace(name=f"anysize-{name}"), (), by_size) for name, known in networks.items()
    }


def framed(images: Tensor) -> Tensor:
    """Images (N, C, H, W) in the middle of a black square of SIDE pixels."""
    height, width = images.shape[2:]
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    return F.pad(images, (left, SIDE - width - left, top, SIDE - height - top))


def by_size(pipeline: Pipeline) -> dict[str, Any]:
    """Scores of samples of each of SIZES, and some of the samples as a picture."""
    scores, rows = {}, []
    for name in SIZES:
        size = sides(name)
        data = recipe("anysize-fashion").data
        real, labels = load_size(data, "train", size, MULTIPLE)
        assert labels is not None
        picks = spread(len(real), SAMPLES)
        asked = labels[picks]
        made = pipeline.generate(
            {"label": asked}, seeds=range(SAMPLES), size=size, precision=pipeline.recipe.train.precision
        )
        held_out, theirs = load_size(data, "test", size, MULTIPLE)
        reference = read(real, labels)
        scores[name] = {
            "samples": score(read(made, asked), reference),
            "held_out": score(read(held_out, theirs), reference),
            "reference": len(real),
        }
        rows.append(framed(made[: SAMPLES : SAMPLES // SHOWN][:SHOWN]))
    return {"sizes": scores, "picture": as_text(torch.cat(rows), SHOWN)}


def sides(name: str) -> tuple[int, int]:
    height, width = name.split("x")
    return int(height), int(width)


def read(images: Tensor, labels: Tensor | None) -> Statistics:
    network = bundled_classifier("fashion-mnist", SIDE)
    if network is None:
        raise InputError("the classifier of Fashion-MNIST is not in this installation; install ditkit again")
    return gather([(framed(images), labels)], network)


def score(found: Statistics, reference: Statistics) -> dict[str, Any]:
    assert found.confusion is not None
    return {
        "n": found.count,
        "frechet": frechet_distance(found.moments, reference.moments),
        "accuracy": found.confusion.trace().item() / found.confusion.sum().item(),
    }


def report(results: Results, out: Path) -> str:
    """The table as Markdown; draws samples.png into `out`."""
    done = {
        name: results[name]["measured"] for name in cells() if name in results and results[name]["finished"]
    }
    if not done:
        return "No cell is finished yet."
    lines = [
        "| size | reference | " + " | ".join([*done, REAL]) + " |",
        "|---" * (len(done) + 3) + "|",
    ]
    first = next(iter(done.values()))
    for size in SIZES:
        row = [measured["sizes"][size]["samples"] for measured in done.values()]
        row.append(first["sizes"][size]["held_out"])
        told = " | ".join(
            f"{entry['frechet']:.2f}, {entry['accuracy']:.1%}" + f" ({entry['n']:,})" * (entry is row[-1])
            for entry in row
        )
        seen = ", not trained on" if size in UNSEEN else ""
        lines.append(f"| {size}{seen} | {first['sizes'][size]['reference']:,} | {told} |")
    rates = " | ".join(f"{results[name]['images_per_second']:.0f}" for name in done)
    lines.append(f"| images/s | | {rates} | |")
    panels = [(name, from_text(measured["picture"], SIDE)) for name, measured in done.items()]
    side_by_side(panels, list(SIZES), out / "samples.png")
    return "\n".join(lines)
