"""What `ditkit sample` makes: images and clips, batch by batch, into a folder, and the files made of all of them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ditkit.codecs.identity import from_bounds, to_uint8
from ditkit.data import ArrayFiles
from ditkit.data.array_values import in_layout
from ditkit.evaluation import save_images
from ditkit.movie_writing import save_movie
from ditkit.pictures import contact_sheet, grid, save_picture, visible
from ditkit.pipeline import Pipeline
from ditkit.processes import here
from ditkit.progress import progress_bar
from ditkit.rollout import roll_out
from ditkit.sampling.config import SamplingRequest
from ditkit.scoring.sample_folder import NPZ, SampleFolder

MOST_COLUMNS = 32  # of a grid

log = logging.getLogger(__name__)


class Clips(NamedTuple):
    """How clips are made and written."""

    fps: float
    windows: Mapping[str, Any]
    """Length, frames kept between windows and loop, as `roll_out` takes them."""


def make_missing(
    pipeline: Pipeline,
    folder: SampleFolder,
    cond: Mapping[str, Any],
    first_seed: int,
    request: SamplingRequest,
    clips: Clips | None,
) -> tuple[int, ...]:
    """Sample and write what is missing in the folder, sample k with the k-th label, of a tensor, and prompt, and with the seed
    first_seed + k; the shape of one, () where none is missing. Several processes share the batches."""
    processes = here()
    missing = processes.from_first(folder.missing() if processes.first else [])
    left = sum(map(len, missing))
    if missing and (there := sum(map(len, folder.batches())) - left):
        log.info(f"{folder.folder}: {there:,} are there already, {left:,} are missing")
    missing = missing[processes.rank :: processes.world]
    places = [k for part in missing for k in part]
    if not places:
        return ()
    asked_for: dict[str, Any] = {}
    if "label" in cond:
        asked_for["label"] = cond["label"][places]
    if "text" in cond:
        asked_for["text"] = [cond["text"][k] for k in places]
    seeds = [first_seed + k for k in places]
    if clips:
        stream = _clips(clips, pipeline, asked_for, seeds, request, missing)
    else:
        stream = _images(pipeline, asked_for, seeds, request, missing)

    def save(sample: Tensor, path: Path) -> None:
        if clips:
            save_movie(sample, path, clips.fps, synced=False)
        else:
            save_picture(_picture(pictures(pipeline, sample[None])), path, synced=False)

    for part, samples in stream:
        folder.keep(part, samples, save)
    return tuple(samples.shape[1:])


def _images(
    pipeline: Pipeline,
    cond: Mapping[str, Any],
    seeds: Sequence[int],
    request: SamplingRequest,
    parts: Sequence[range],
) -> Iterator[tuple[range, Tensor]]:
    """Each batch with its images, (B, C, H, W), uint8 or, of data with a range, float32 in that range."""
    stream = pipeline.stream(cond, seeds=seeds, request=request, progress=True)
    for part in parts:
        images = [next(stream)]
        while sum(map(len, images)) < len(part):  # some solvers make them one by one
            images.append(next(stream))
        yield part, torch.cat(images)


def _clips(
    clips: Clips,
    pipeline: Pipeline,
    cond: Mapping[str, Any],
    seeds: Sequence[int],
    request: SamplingRequest,
    parts: Sequence[range],
) -> Iterator[tuple[range, Tensor]]:
    """Each batch with its clips, uint8 (B, C, F, H, W)."""
    begun, several = 0, len(parts) > 1
    with progress_bar(len(seeds), "sampling", "clip", shown=several) as bar:
        for part in parts:
            of = slice(begun, begun + len(part))
            begun += len(part)
            asked_for = {name: values[of] for name, values in cond.items()}
            yield (
                part,
                roll_out(
                    pipeline,
                    asked_for,
                    seeds=seeds[of],
                    request=request,
                    progress=not several,
                    **clips.windows,
                ),
            )
            bar.update(len(part))


def _picture(images: Tensor) -> Image.Image:
    """One image, uint8 (1, C, H, W), as its file shows it."""
    pixels = visible(images)[0].permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def pictures(pipeline: Pipeline, samples: Tensor) -> Tensor:
    """Samples as uint8."""
    data = pipeline.recipe.data
    if isinstance(data, ArrayFiles) and data.range:
        return to_uint8(from_bounds(samples, data.range))
    return samples


def draw_sheet(
    pipeline: Pipeline, folder: SampleFolder, labels: Tensor, rows: int, *, rows_differ: bool, prompts: bool
) -> None:
    """The picture of the first samples, where there is none: those of a row, class or prompt, stand together. Sample k is of
    row k % rows; `rows_differ` says whether they do, `prompts` whether by their prompts."""
    samples = folder.first()
    if samples is None:
        return
    row, count = torch.arange(len(samples)) % rows, len(samples)
    if samples.ndim == 5:
        picture = contact_sheet(samples[torch.argsort(row, stable=True)])
    else:
        order = torch.argsort(row if prompts else labels[:count], stable=True)
        columns = -(-count // rows) if rows_differ else 8
        picture = grid(pictures(pipeline, samples)[order], min(columns, MOST_COLUMNS))
    save_picture(picture, folder.folder / folder.sheet)


def keep_all(pipeline: Pipeline, folder: SampleFolder, labels: Tensor | None) -> None:
    """Write samples.npz, where it is wanted and not there yet."""
    batches = folder.all()
    if batches is None:
        return
    data = pipeline.recipe.data

    def stored(samples: Tensor) -> np.ndarray:
        if isinstance(data, ArrayFiles) and data.range:
            return in_layout(samples.numpy(), data.layout)
        return samples.movedim(1, -1).numpy()  # NHWC, of clips NFHWC

    numbers = None if labels is None else labels.numpy()
    save_images(folder.folder / NPZ, map(stored, batches), folder.count, numbers)
