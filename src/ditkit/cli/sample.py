"""`ditkit sample RUN`: images, or clips, from a run, a snapshot's folder or a bundled snapshot."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from pydantic import Field
from torch import Tensor

from ditkit.cli.options import SamplingOptions, check_writable
from ditkit.cli.parsing import parse
from ditkit.codecs.identity import from_bounds, to_uint8
from ditkit.conditions import numbered
from ditkit.data import ArrayFiles, Arrays, prepare
from ditkit.data.array_values import in_layout
from ditkit.data.video import read_movie
from ditkit.errors import InputError
from ditkit.movies import save_movie
from ditkit.pictures import CHANNELS, contact_sheet, grid, visible
from ditkit.pipeline import Pipeline, Sampling, load
from ditkit.rollout import roll_out
from ditkit.scoring import sampling_facts


class SampleCommand(SamplingOptions):
    """Make images: a grid, and on request single PNGs or an .npz file in ADM's format.

    Of a model of clips a sheet of frames, a row for each clip, and every clip as a file of its own.
    """

    run: Annotated[str, tyro.conf.Positional]
    """A run's folder, a snapshot's folder, or the name of a bundled snapshot."""
    labels: tuple[str, ...] = ()
    """Classes to sample, by name or number, over and over; all of them when not given."""
    prompt: tuple[str, ...] = ()
    """Texts to sample, over and over, for a model that is told a text."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Number of images; 8 of each class, or prompt, when not given (of clips 2)."""
    out: Path | None = None
    """Folder for what is written; samples/NAME when not given."""
    size: str | None = None
    """Height and width in pixels, 48x96, or 48 for squares; the recipe's when not given. Multiples of the patch."""
    frames: Annotated[int, Field(ge=1)] | None = None
    """Frames of a clip, at once; the recipe's when not given."""
    image: Path | None = None
    """A picture that clips begin with, for a model trained so."""
    extend: Path | None = None
    """A clip that is gone on from: a video, GIF or WebP file, or a folder of frames."""
    length: Annotated[int, Field(ge=1)] | None = None
    """Frames altogether: windows of --frames, each beginning with the last --keep frames of the one before."""
    keep: Annotated[int, Field(ge=1)] = 4
    """Frames that go over from window to window, for --extend, --length and --loop."""
    loop: bool = False
    """Let each clip lead back to its first frames, in a window after its --length."""
    fps: Annotated[float, Field(gt=0)] = 8.0
    """Frames a second of the clips' files."""
    movie: Literal["gif", "mp4", "webp"] = "gif"
    """Kind of the clips' files; mp4 needs the extra `video`."""
    levels: str | None = None
    """Of a model of several resolutions: which images, 0 of the highest, or all, side by side."""
    png: bool = False
    """Also every image as its own PNG file, named by number and class; as the grid shows it."""
    npz: bool = False
    """Also samples.npz: arr_0 and the labels; uint8 (N, H, W, C), what ADM's evaluator reads, or of data arrays with a
    range float32 in that range, its axes as the data's."""


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
    try:
        asked = tuple(int(label) for label in numbered(command.labels, pipeline.recipe.data.names or ()))
    except InputError as error:
        raise InputError(f"--labels: {error}") from None
    classes = asked or tuple(range(pipeline.classes)) or (0,)
    rows = len(command.prompt) or len(classes)
    count = command.n or (2 if pipeline.recipe.data.shape[:-2] else 8) * rows
    labels = torch.tensor([classes[k % rows % len(classes)] for k in range(count)])
    out = command.out or Path("samples") / pipeline.recipe.name
    check_writable(out)
    cond: dict[str, Any] = {"label": labels} if pipeline.classes else {}
    if command.prompt:
        cond["text"] = [command.prompt[k % rows] for k in range(count)]
    how = command.how | {"size": size_of(command.size), "frames": command.frames, "levels": command.levels}
    command.compile_for(pipeline, count, how)
    seeds = range(command.seed, command.seed + count)
    if pipeline.recipe.data.shape[:-2]:
        write_clips(command, pipeline, cond, seeds, how, rows, out)
        return
    check_no_clips(command)
    data = pipeline.recipe.data
    images = pipeline.generate(cond, seeds=seeds, numbers=data.bounds is not None, **how)
    stored = images.permute(0, 2, 3, 1).numpy()  # NHWC
    if isinstance(data, ArrayFiles) and data.range:
        stored = in_layout(images.numpy(), data.layout)
        images = to_uint8(from_bounds(images, data.range))
    out.mkdir(parents=True, exist_ok=True)
    by_row = torch.argsort(torch.arange(count) % rows if command.prompt else labels, stable=True)
    columns = -(-count // rows) if cond else 8
    picture = grid(images[by_row], min(columns, 32))
    picture.save(out / "grid.png")
    written = [out / "grid.png"]
    if command.png:
        for k, (image, label) in enumerate(zip(visible(images), labels.tolist(), strict=True)):
            suffix = f"-class{label}" if pipeline.classes else ""
            Image.fromarray(_pixels(image)).save(out / f"{k:06d}{suffix}.png")
        written.append(out / "000000*.png")
    if command.npz:
        _save_npz(out / "samples.npz", stored, cond.get("label"))
        written.append(out / "samples.npz")
    said(pipeline, command, f"{count} images", written)
    for note in shown(images.shape[1], data.bounds):
        print(note)


def said(pipeline: Pipeline, command: SampleCommand, what: str, written: Sequence[Path]) -> None:
    """How it was sampled, and the files."""
    facts = sampling_facts(pipeline, command.how)
    guidance = facts.get("level_guidance") or facts["guidance"]
    print(f"{what}, {facts['sampler']}, {facts['nfe']} evaluations, guidance {guidance}")
    print("\n".join(str(path) for path in written))


def shown(channels: int, bounds: tuple[float, float] | None) -> Iterator[str]:
    """What one needs to know of pictures of images that are no pictures."""
    if channels not in (1, 3):
        first = f"the first {CHANNELS} of " if channels > CHANNELS else ""
        yield f"pictures show {first}{channels} channels side by side, each grey"
    if bounds is not None:
        yield f"pictures are 8-bit, {bounds[0]:g} as 0 and {bounds[1]:g} as 255; --npz writes the numbers"


def size_of(text: str | None) -> tuple[int, int] | None:
    """ "48x96" or "48" as height and width. InputError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found:
        raise InputError(f"--size {text}: give height x width in pixels, as 48x96, or one number for squares")
    height, width = found[1], found[2] or found[1]
    return int(height), int(width)


def check_no_clips(command: SampleCommand) -> None:
    """InputError for what only models of clips can do."""
    for flag in ("image", "extend", "length", "loop"):
        if getattr(command, flag):
            raise InputError(f"--{flag}: this model makes images, not clips; leave it out")


def write_clips(
    command: SampleCommand,
    pipeline: Pipeline,
    cond: Mapping[str, Any],
    seeds: Sequence[int],
    how: Sampling,
    rows: int,
    out: Path,
) -> None:
    """Sample clips and write them; those of a row of the sheet's, class or prompt, stand together."""
    if command.image and command.extend:
        raise InputError("--image and --extend: clips begin with one of them; leave the other out")
    start = None
    if first := command.image or command.extend:
        size = how.get("size") or pipeline.recipe.data.shape[-2:]
        start = first_frames(first, size, pipeline.recipe.data.channels)
    length, keep, loop = command.length, command.keep, command.loop
    clips = roll_out(
        pipeline, cond, seeds=seeds, length=length, keep=keep, loop=loop, **(how | {"start": start})
    )
    out.mkdir(parents=True, exist_ok=True)
    by_row = torch.argsort(torch.arange(len(clips)) % rows, stable=True)
    contact_sheet(clips[by_row]).save(out / "sheet.png")
    for k, clip in enumerate(clips):
        save_movie(clip, out / f"{k:06d}.{command.movie}", command.fps)
    written = [out / "sheet.png", out / f"000000*.{command.movie}"]
    if command.npz:
        _save_npz(out / "samples.npz", clips.permute(0, 2, 3, 4, 1).numpy(), cond.get("label"))  # NFHWC
        written.append(out / "samples.npz")
    said(pipeline, command, f"{len(clips)} clips of {clips.shape[2]} frames", written)


def first_frames(path: Path, size: tuple[int, ...], channels: int) -> Tensor:
    """Frames of a file as clips begin with, uint8 (1, C, F, H, W), cut as ADM does where they are to be square.
    InputError where they are of another size and cannot be."""
    clip, _ = read_movie(path, channels)
    if tuple(clip.shape[2:]) == tuple(size):
        return clip[None]
    if size[0] != size[1]:
        raise InputError(
            f"{path} is {clip.shape[2]}x{clip.shape[3]}, the clips are {size[0]}x{size[1]}; give it in that size, or "
            f"--size {clip.shape[2]}x{clip.shape[3]}"
        )
    images = Arrays(clip.transpose(0, 1), None, ())
    return torch.stack([prepare(images[k][0], size[0], channels) for k in range(len(images))], dim=1)[None]


def _save_npz(path: Path, pixels: np.ndarray, labels: Tensor | None) -> None:
    """As ADM's evaluator reads images."""
    if labels is None:
        np.savez(path, arr_0=pixels)
    else:
        np.savez(path, arr_0=pixels, labels=labels.numpy())


def _pixels(image: torch.Tensor) -> np.ndarray:
    pixels = image.permute(1, 2, 0).numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
