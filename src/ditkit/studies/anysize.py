"""One network for every height and width: does it draw sizes it has never seen, and better than one that knows squares?

Fashion-MNIST cut to what each picture shows has 23 sizes, from 4 x 28 to 28 x 28 pixels; three are left out of training.
One DiT learns the others in buckets (`buckets`), packed in rows (`packed`) or with added instead of rotary positions
(`sincos`); the same network learns the uncut squares (`square`), as many images. All sample sizes that the first
three have seen and those that none has, in the classes that real pictures of that size have.

Scored by Fashion-MNIST's classifier, pictures and samples alike in the middle of a black square of 28 pixels: the share
read as their class, and the Fréchet distance to the training pictures of that size, for the sizes left out
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
from ditkit.evaluation import Statistics, bundled_classifier, frechet_distance, frechet_resamples, gather
from ditkit.pictures import side_by_side
from ditkit.pipeline import Pipeline
from ditkit.recipes import recipe
from ditkit.recipes.anysize import UNSEEN
from ditkit.studies.cells import Cell, Results
from ditkit.studies.figures import as_text, from_text, solver_table

IMAGES = 180_000
SAMPLES = 500
SIDE = 28
MULTIPLE = 4
SIZES = (*UNSEEN, "12x28", "28x12", "20x28", "28x20")
"""Those left out, then some that were seen."""
SHOWN = 8  # samples of each size in the picture
SOLVERS = (("ab2", 10), ("ab2", 5), ("ab2", 8), ("ab2", 15), ("ab2", 20), ("heun", 25))
"""Samplers and their steps; differences are to the first."""
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
        name: Cell(
            known.replace(name=f"anysize-{name}"), (), by_size_and_solver if name == "buckets" else by_size
        )
        for name, known in networks.items()
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
        reference, labels = real_pictures(name)
        made = samples(pipeline, name, labels)
        held_out, theirs = load_size(recipe("anysize-fashion").data, "test", sides(name), MULTIPLE)
        scores[name] = {
            "samples": score(read(made, labels), reference),
            "held_out": score(read(held_out, theirs), reference),
            "reference": reference.count,
        }
        rows.append(framed(made[: SAMPLES : SAMPLES // SHOWN][:SHOWN]))
    return {"sizes": scores, "picture": as_text(torch.cat(rows), SHOWN)}


def by_size_and_solver(pipeline: Pipeline) -> dict[str, Any]:
    """Likewise, and under "solvers" the means over SIZES by each of SOLVERS, with the paired difference to the first."""
    spreads: list[list[Tensor]] = [[] for _ in SOLVERS]
    found: list[list[dict[str, Any]]] = [[] for _ in SOLVERS]
    for name in SIZES:
        reference, labels = real_pictures(name)
        for k, (sampler, steps) in enumerate(SOLVERS):
            statistics = read(samples(pipeline, name, labels, sampler=sampler, steps=steps), labels)
            found[k].append(score(statistics, reference))
            spreads[k].append(frechet_resamples(statistics.rows, reference.moments))
    means = []
    for (sampler, steps), scores, spread_of in zip(SOLVERS, found, spreads, strict=True):
        gaps = torch.stack(spread_of) - torch.stack(spreads[0])  # (sizes, resamples)
        means.append(
            {
                "sampler": sampler,
                "steps": steps,
                "frechet": sum(each["frechet"] for each in scores) / len(SIZES),
                "accuracy": sum(each["accuracy"] for each in scores) / len(SIZES),
                "error": gaps.std(1).square().sum().sqrt().item() / len(SIZES),
            }
        )
    return by_size(pipeline) | {"solvers": means}


def real_pictures(name: str) -> tuple[Statistics, Tensor]:
    """What is read from the training pictures of a size, and the classes of SAMPLES of them."""
    real, labels = load_size(recipe("anysize-fashion").data, "train", sides(name), MULTIPLE)
    assert labels is not None
    return read(real, labels), labels[spread(len(real), SAMPLES)]


def samples(pipeline: Pipeline, name: str, labels: Tensor, **solver: Any) -> Tensor:
    """Images of a size, of these classes, of seeds 0, 1, ..."""
    precision = pipeline.recipe.train.precision
    return pipeline.generate(
        {"label": labels}, seeds=range(len(labels)), size=sides(name), precision=precision, **solver
    )


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
        scores = " | ".join(
            f"{each['frechet']:.2f}, {each['accuracy']:.1%}" + f" ({each['n']:,})" * (each is row[-1])
            for each in row
        )
        seen = ", not trained on" if size in UNSEEN else ""
        lines.append(f"| {size}{seen} | {first['sizes'][size]['reference']:,} | {scores} |")
    rates = " | ".join(f"{results[name]['images_per_second']:.0f}" for name in done)
    lines.append(f"| images/s | | {rates} | |")
    panels = [(name, from_text(measured["picture"], SIDE)) for name, measured in done.items()]
    side_by_side(panels, list(SIZES), out / "samples.png")
    for measured in done.values():
        lines += solver_table(measured.get("solvers", []), "FD, mean over the sizes", ("accuracy",))
    return "\n".join(lines)
