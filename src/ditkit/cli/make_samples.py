"""Carrying `ditkit sample` out. Its flags, which import no torch, are sample.py's."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditkit.cli.options import check_writable, numbered_folders
from ditkit.cli.sample import SampleCommand
from ditkit.cli.samples import Clips, draw_sheet, keep_all, make_missing
from ditkit.conditions import numbered
from ditkit.data import Arrays, prepare
from ditkit.data.video import read_movie
from ditkit.device import pick_device
from ditkit.errors import InputError
from ditkit.files import owned, tensors_hash
from ditkit.pictures import CHANNELS
from ditkit.pipeline import Pipeline, load
from ditkit.processes import Processes, joined
from ditkit.sampling.config import SamplingRequest
from ditkit.scoring import sampling_facts
from ditkit.scoring.comparison import weights_of
from ditkit.scoring.sample_folder import (
    CLIPS,
    GRID,
    IMAGES,
    NPZ,
    SHEET,
    SampleFolder,
    claim_samples,
    other_samples,
)
from ditkit.scoring.tables import away

MOST_IMAGES, MOST_CLIPS = 1000, 100  # in grid.png, and in sheet.png


def make_samples(command: SampleCommand) -> None:
    """Make the images or clips and write them, with what they were made with; several processes share the batches."""
    with joined(pick_device(command.device)) as processes:
        _make_samples(command, processes)


def _make_samples(command: SampleCommand, processes: Processes) -> None:
    pipeline = load(command.run, command.device)
    classes = _checked(command, pipeline)
    clips = bool(pipeline.recipe.data.shape[:-2])
    rows = len(command.prompt) or len(classes)
    row_labels = [classes[row % len(classes)] for row in range(rows)]  # of the picture
    most = MOST_CLIPS if clips else MOST_IMAGES
    count = command.n or min((2 if clips else 8) * rows, most)
    labels = torch.tensor(row_labels)[torch.arange(count) % rows]
    cond: dict[str, Any] = {"label": labels} if pipeline.classes else {}
    if command.prompt:
        cond["text"] = [command.prompt[k % rows] for k in range(count)]
    size = size_of(command.size)
    if clips:
        request = command.request(size=size, start=beginning(command, pipeline, size))
    else:
        check_no_clips(command)
        request = command.request(size=size, numbers=pipeline.recipe.data.bounds is not None)
    _refuse_early(command, pipeline, cond, request)
    check_writable(command.out or Path("samples"))
    compiled = command.compile_for(pipeline, count, request)
    settings = settings_for(
        command, pipeline, request, count, row_labels if pipeline.classes else [], compiled
    )
    out = processes.from_first(
        command.out or free_folder(Path("samples") / pipeline.recipe.name, settings, command.replace)
    )
    shown = min(count, most // rows * rows or most)  # as many of each row

    def single(k: int) -> str:
        if clips:
            return f"{CLIPS}/{k:06d}.{command.movie}"
        return f"{IMAGES}/{k:06d}{f'-class{labels[k]}' if pipeline.classes else ''}.png"

    folder = SampleFolder(
        folder=out,
        count=count,
        batch=command.batch,
        sheet=SHEET if clips else GRID,
        shown=shown,
        single=single if clips or command.png else None,
        npz=command.npz,
    )
    windows = {"length": command.length, "keep": command.keep, "loop": command.loop}
    of_clips = Clips(command.fps, windows) if clips else None
    with owned(out) if processes.first else nullcontext():
        with processes.in_turn():
            if processes.first:
                claim_samples(out, settings, command.replace)
        made = make_missing(pipeline, folder, cond, command.seed, request, of_clips)
        processes.wait()
        if not processes.first:
            return
        draw_sheet(pipeline, folder, labels, rows, rows_differ=bool(cond), prompts=bool(command.prompt))
        keep_all(pipeline, folder, cond.get("label"))
        folder.finish()
    _report(command, pipeline, folder, made)


def _checked(command: SampleCommand, pipeline: Pipeline) -> tuple[int, ...]:
    """The classes to sample: those of --labels, or all of the model's, or (0,) where it has none.
    InputError for labels or prompts that the model does not take, or lacks."""
    if command.labels and not pipeline.classes:
        raise InputError("--labels: this model was trained without classes; leave it out")
    if command.prompt and not pipeline.recipe.text:
        raise InputError("--prompt: this model takes no text; leave it out")
    if pipeline.recipe.text and not command.prompt:
        raise InputError("--prompt: this model takes a text; give one to sample")
    if pipeline.recipe.text and pipeline.classes and len(command.labels) not in (1, len(command.prompt)):
        raise InputError(f"--labels: give one for all prompts or one for each of the {len(command.prompt)}")
    try:
        labels = tuple(int(label) for label in numbered(command.labels, pipeline.recipe.data.names or ()))
    except InputError as error:
        raise InputError(f"--labels: {error}") from None
    return labels or tuple(range(pipeline.classes)) or (0,)


def _refuse_early(
    command: SampleCommand, pipeline: Pipeline, cond: Mapping[str, Any], request: SamplingRequest
) -> None:
    """InputError, before anything is written, for what cannot be sampled."""
    first = {name: values[:1] for name, values in cond.items()}
    if request.start is not None:
        request = request.but(start=request.start[:, :, -command.keep :])  # as a window begins
    pipeline.plan(first, seeds=[command.seed], request=request)


def settings_for(
    command: SampleCommand,
    pipeline: Pipeline,
    request: SamplingRequest,
    count: int,
    labels: Sequence[int],
    compiled: bool,
) -> dict[str, Any]:
    """Everything that decides the images, for the record in their folder."""
    facts, start = sampling_facts(pipeline, request), request.start
    of_clips = {
        "start": None if start is None else tensors_hash({"start": start}),
        **{name: getattr(command, name) for name in ("length", "keep", "loop", "fps", "movie")},
    }
    return {
        "n": count,
        **facts,
        "weights": facts["weights"]["sha256"],
        "weak_weights": weights_of(command.weak),
        "lower_weights": weights_of(command.lower),
        "codec": pipeline.recipe.codec.model_dump(mode="json"),
        "first_seed": command.seed,
        "batch": command.batch,
        "labels": list(labels),
        "prompts": list(command.prompt),
        **{name: getattr(request, name) for name in ("size", "frames", "levels")},
        **(of_clips if pipeline.recipe.data.shape[:-2] else {}),
        "compiled": compiled,
        **{name: version(name) for name in ("ditkit", "torch")},
    }


def free_folder(folder: Path, settings: Mapping[str, Any], replace: bool) -> Path:
    """`folder` where samples in it are to be replaced; otherwise the first of `folder`, `folder`-2, ... that holds none of
    other settings."""
    free = (some for some in numbered_folders(folder) if other_samples(some, settings) is None)
    return folder if replace else next(free)


def _report(command: SampleCommand, pipeline: Pipeline, folder: SampleFolder, made: Sequence[int]) -> None:
    """How it was sampled, the files, and what one needs to know of them."""
    facts = sampling_facts(pipeline, command.request(size=None))
    guidance = facts.get("level_guidance") or facts["guidance"]
    data, out, clips = pipeline.recipe.data, folder.folder, folder.sheet == SHEET
    frames = f" of {made[-3]} frames" if clips and made else ""
    what = f"{folder.made} {'clips' if clips else 'images'}{frames}"
    there = "" if made else " (all there already)"
    print(
        f"{what}{there}, {facts['sampler']}, {facts['nfe']} evaluation{'s' * (facts['nfe'] != 1)}, guidance {guidance}{away(facts)}"
    )
    files = [folder.sheet, folder.single and str(Path(folder.single(0)).parent), NPZ if folder.npz else None]
    print("\n".join(str(out / name) for name in files if name))
    if folder.shown < folder.count:
        rest = f"; --png or --npz makes and keeps all {folder.count:,}" if folder.made < folder.count else ""
        print(f"{folder.sheet} shows the first {folder.shown:,}{rest}")
    if not clips:
        print("".join(f"{note}\n" for note in shown(data.channels, data.bounds)), end="")


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


def beginning(command: SampleCommand, pipeline: Pipeline, size: tuple[int, int] | None) -> Tensor | None:
    """The frames that clips begin with, uint8 (1, C, F, H, W), where there are some."""
    if command.image and command.extend:
        raise InputError("--image and --extend: clips begin with one of them; leave the other out")
    first = command.image or command.extend
    if first is None:
        return None
    return first_frames(first, size or pipeline.recipe.data.shape[-2:], pipeline.recipe.data.channels)


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
