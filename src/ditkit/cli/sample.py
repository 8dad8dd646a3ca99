"""`ditkit sample RUN`: images from a run, a snapshot's folder or a bundled snapshot."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image
from pydantic import Field

from ditkit.cli.options import SamplingOptions, check_writable
from ditkit.cli.parsing import parse
from ditkit.errors import InputError
from ditkit.pictures import grid
from ditkit.pipeline import load
from ditkit.scoring import sampling_facts


class SampleCommand(SamplingOptions):
    """Make images: a grid, and on request single PNGs or an .npz file in ADM's format."""

    run: Annotated[str, tyro.conf.Positional]
    """A run's folder, a snapshot's folder, or the name of a bundled snapshot."""
    labels: tuple[int, ...] = ()
    """Classes to sample, over and over; all of them when not given."""
    prompt: tuple[str, ...] = ()
    """Texts to sample, over and over, for a model that is told a text."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Number of images; 8 of each class, or prompt, when not given."""
    out: Path | None = None
    """Folder for what is written; samples/NAME when not given."""
    levels: str | None = None
    """Of a model of several resolutions: which images, 0 of the highest, or all, side by side."""
    png: bool = False
    """Also every image as its own PNG file, named by number and class."""
    npz: bool = False
    """Also samples.npz: arr_0 uint8 (N, H, W, C), and the labels; what ADM's evaluator reads."""


def run(argv: list[str]) -> None:
    command = parse(SampleCommand, argv, "sample")
    pipeline = load(command.run, command.device)
    if command.labels and not pipeline.classes:
        raise InputError("--labels: this model was trained without classes; leave it out")
    if command.prompt and not pipeline.recipe.text:
        raise InputError("--prompt: this model is told no text; leave it out")
    if pipeline.recipe.text and not command.prompt:
        raise InputError("--prompt: this model is told a text; say what to sample")
    if pipeline.recipe.text and pipeline.classes and len(command.labels) not in (1, len(command.prompt)):
        raise InputError(f"--labels: give one for all prompts or one for each of the {len(command.prompt)}")
    classes = command.labels or tuple(range(pipeline.classes)) or (0,)
    rows = len(command.prompt) or len(classes)
    count = command.n or 8 * rows
    labels = torch.tensor([classes[k % rows % len(classes)] for k in range(count)])
    out = command.out or Path("samples") / pipeline.recipe.name
    check_writable(out)
    command.compile_if_asked(pipeline)
    cond: dict[str, Any] = {"label": labels} if pipeline.classes else {}
    if command.prompt:
        cond["text"] = [command.prompt[k % rows] for k in range(count)]
    images = pipeline.generate(
        cond,
        seeds=range(command.seed, command.seed + count),
        levels=command.levels,
        **command.how,
    )
    out.mkdir(parents=True, exist_ok=True)
    by_row = torch.argsort(torch.arange(count) % rows if command.prompt else labels, stable=True)
    columns = -(-count // rows) if cond else 8
    picture = grid(images[by_row], min(columns, 32))
    picture.save(out / "grid.png")
    written = [out / "grid.png"]
    if command.png:
        for k, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            suffix = f"-class{label}" if pipeline.classes else ""
            Image.fromarray(_pixels(image)).save(out / f"{k:06d}{suffix}.png")
        written.append(out / "000000*.png")
    if command.npz:
        pixels = images.permute(0, 2, 3, 1).numpy()  # NHWC
        if pipeline.classes:
            np.savez(out / "samples.npz", arr_0=pixels, labels=labels.numpy())
        else:
            np.savez(out / "samples.npz", arr_0=pixels)
        written.append(out / "samples.npz")
    facts = sampling_facts(pipeline, command.how)
    guidance = facts.get("level_guidance") or facts["guidance"]
    print(f"{count} images, {facts['sampler']}, {facts['nfe']} evaluations, guidance {guidance}")
    print("\n".join(str(path) for path in written))


def _pixels(image: torch.Tensor) -> np.ndarray:
    pixels = image.permute(1, 2, 0).numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
