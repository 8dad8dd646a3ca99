"""`ditkit likelihood RUN`: bits per dimension of real images, and a picture of the likeliest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from ditkit.cli.options import check_new, own_folder
from ditkit.cli.parsing import parse
from ditkit.cli.shapes import Positional
from ditkit.config import Section
from ditkit.data import Split
from ditkit.device import Compile, DeviceName
from ditkit.pictures import side_by_side
from ditkit.pipeline import load
from ditkit.plots import histograms
from ditkit.records import write_json
from ditkit.sampling.config import Steps
from ditkit.scoring.likelihood import STEPS, Likelihoods, Method, likelihoods

SHOWN = 8  # likeliest and unlikeliest images
RECORD, BITS, IMAGES = "likelihood.json", "bits.png", "images.png"


class LikelihoodCommand(Section):
    """Bits per dimension of real images: how many bits the model needs for a pixel value, image by image.

    Training images far below held-out ones mean that the model has learned them by heart.
    """

    what: Annotated[str, Positional]
    """A run or a snapshot of a model of pixels; the images are of its own data."""
    n: Annotated[int, Field(ge=2)] = 200
    """Images of each part, evenly spread."""
    splits: tuple[Split, ...] = ("train", "test")
    """Parts of the data."""
    method: Method | None = None
    """flow: the density of the probability-flow ODE; bound: the variational bound, DDPM's own number. By
    default bound for the ddpm path and flow for others."""
    steps: Steps | None = None
    """Steps of the grid. By default flow takes 100, each of two evaluations with their gradients, and bound
    all 1000."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Image k takes its noise from seed + k."""
    batch: Annotated[int, Field(ge=1)] = 50
    """Images at once."""
    compile: Compile = "auto"
    """Compile the network first. auto: where a compiler works (a C++ compiler on a CPU) and there are images enough to pay
    for it."""
    device: DeviceName = "auto"
    """Where to compute."""
    out: Path | None = None
    """Folder for likelihood.json and the pictures; WHAT/likelihood for a run, otherwise ./likelihood, or where another is
    there likelihood-2, likelihood-3, ..."""
    replace: bool = False
    """Write over a likelihood.json that is there."""


def run(argv: list[str]) -> None:
    command = parse(LikelihoodCommand, argv, "likelihood")
    path = Path(command.what)
    out = command.out or (path / "likelihood" if path.is_dir() else Path("likelihood"))
    for name in (RECORD, BITS, IMAGES):
        check_new(out / name, command.replace or command.out is None)
    pipeline = load(command.what, command.device)
    method: Method = command.method or ("bound" if pipeline.transport.path == "ddpm" else "flow")
    evaluations = (command.steps or STEPS[method]) * (
        6 if method == "flow" else 1
    )  # two, with their gradients
    tokens = pipeline.recipe.tokens(pipeline.recipe.data.shape)
    pipeline.compile(command.compile, len(command.splits) * command.n, evaluations * tokens)
    found = {
        split: likelihoods(
            pipeline,
            command.n,
            split=split,
            method=method,
            steps=command.steps,
            seed=command.seed,
            batch=command.batch,
            progress=True,
        )
        for split in command.splits
    }
    record = {
        "recipe": pipeline.recipe.name,
        "weights": {"ema": True, **pipeline.record},
        "method": method,
        "steps": command.steps or STEPS[method],
        "seed": command.seed,
        "bits_per_dimension": {
            split: {"images": len(each.bits), "mean": each.bits.mean().item(), "error": _error(each)}
            for split, each in found.items()
        },
    }
    if command.out is None and not command.replace:
        out = own_folder(out, RECORD, record)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, record)
    for split, each in found.items():
        print(
            f"{split:5s}  {each.bits.mean():.3f} ± {_error(each):.3f} bits per dimension, {len(each.bits)} images"
        )
    histograms({split: each.bits.tolist() for split, each in found.items()}, "bits per dimension", out / BITS)
    _extremes(found, out / IMAGES)
    print("\n".join(str(out / name) for name in (RECORD, BITS, IMAGES)))


def _error(found: Likelihoods) -> float:
    """The standard error of the mean over the images."""
    return (found.bits.std() / len(found.bits) ** 0.5).item()


def _extremes(found: Mapping[Split, Likelihoods], path: Path) -> None:
    """The likeliest images above the unlikeliest, a panel for each part."""
    panels = []
    for split, each in found.items():
        order, shown = each.bits.argsort(), min(SHOWN, len(each.bits) // 2)
        panels.append((split, each.images[torch.cat([order[:shown], order[-shown:]])]))
    side_by_side(panels, ["likeliest", "unlikeliest"], path)
