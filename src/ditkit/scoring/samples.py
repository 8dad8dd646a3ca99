"""Samples: the images to score, in batches, with all that decides them.

Generated as they are scored, or read from a folder or an ADM .npz; never all in memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ditkit.codecs.identity import as_uint8
from ditkit.data import DataSection, Folder, in_order, spread
from ditkit.data.decoding import own_limit
from ditkit.data.folder import scan
from ditkit.device import settled
from ditkit.errors import InputError
from ditkit.evaluation import npz_images, npz_labels
from ditkit.pipeline import Pipeline, requested
from ditkit.processes import here
from ditkit.randomness import generator
from ditkit.sampling.config import SamplingRequest
from ditkit.scoring.sample_folder import IMAGES, NPZ, settings_of

GREY = ("1", "L", "I;16")  # Pillow's modes

Balance = Literal["balanced", "random", "data"]
Part = Literal["held-out", "training"]


@dataclass
class Samples:
    """Images in batches (uint8 (B, C, H, W), labels (B,) or None), once."""

    batches: Iterator[tuple[Tensor, Tensor | None]]
    labels: Tensor | None
    """int64 (N,), of all of them; None without classes."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """What decides the images."""
    captions: Sequence[str] | None = None
    """What each of them shows or should show; None without captions."""
    part: range | None = None
    """Which of them the batches are, where several processes have a part each; None: all."""


def keeping(samples: Samples, count: int, kept: list[Tensor]) -> Samples:
    """The same samples; the first `count` images are put into `kept` as they pass, to be looked at. Of several processes each
    keeps those of its own; `collected` has all of them."""

    def batches() -> Iterator[tuple[Tensor, Tensor | None]]:
        left = count - (samples.part.start if samples.part else 0)
        for images, labels in samples.batches:
            if left > 0:
                kept.append(images[:left])
                left -= len(kept[-1])
            yield images, labels

    return replace(samples, batches=batches())


def collected(kept: Sequence[Tensor]) -> Tensor:
    """The images that `keeping` has kept, (n, C, H, W), those of all processes."""
    return torch.cat([images for own in here().gathered(list(kept)) for images in own])


def frame_by_frame(
    batches: Iterable[tuple[Tensor, Tensor | None]],
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Every frame of clips (B, C, F, H, W) as an image, (B F, C, H, W), of its clip's label; images as they are; numbers
    as 8-bit pictures, as which samples are scored."""
    for images, labels in batches:
        if images.ndim == 5:
            labels = None if labels is None else labels.repeat_interleave(images.shape[2])
            images = images.transpose(1, 2).flatten(0, 1)
        yield as_uint8(images), labels


def balanced_labels(count: int, classes: int) -> Tensor:
    """0, 1, ..., classes - 1, 0, 1, ...: `count` labels."""
    return torch.arange(count) % classes


def random_labels(seeds: range, classes: int) -> Tensor:
    """A label for each seed, uniform over the classes, a function of that seed alone."""
    return torch.tensor([generator(seed, 0, "label").integers(classes) for seed in seeds])


def labels_of(data: DataSection, count: int) -> Tensor:
    """`count` labels of training images, evenly spread and over and over: each class as often as in the data. InputError where
    there are none."""
    labels = data.open("train").labels
    if labels is None:
        raise InputError(f"{data.kind}: the data has no labels to sample; give `labels` balanced or random")
    return labels[_evenly(len(labels), count)]


def _evenly(there: int, count: int) -> list[int]:
    """`count` places of those that there are, evenly spread; where it is more than there are, over and over."""
    places = spread(there, count)
    return [places[k % len(places)] for k in range(count)]


def _chosen_labels(pipeline: Pipeline, seeds: range, how: Balance) -> Tensor:
    if how == "data":
        return labels_of(pipeline.recipe.data, len(seeds))
    if how == "random":
        return random_labels(seeds, pipeline.classes)
    return balanced_labels(len(seeds), pipeline.classes)


def sampled(
    pipeline: Pipeline,
    count: int,
    *,
    first_seed: int = 0,
    labels: Balance = "balanced",
    captions: Part = "held-out",
    request: SamplingRequest | None = None,
    progress: bool = False,
    **values: Any,
) -> Samples:
    """`count` images, or clips, of a model, made as they are needed; a `request` as in `Pipeline.generate`.

    A model of texts gets `captions` of its data, with their images' labels (`captioned`). Of a solver that
    chooses its own steps, the protocol's "nfe" is the mean over the images made so far. Of several processes each makes a
    part.
    """
    seeds = range(first_seed, first_seed + count)
    cond: dict[str, Any] = {}
    origin: str = labels if pipeline.classes else "none"
    if pipeline.recipe.text:
        cond, origin = captioned(pipeline.recipe.data, count, captions)
    elif pipeline.classes:
        cond["label"] = _chosen_labels(pipeline, seeds, labels)
    chosen = cond.get("label")
    evaluations = 0

    def count_evaluations(images: int) -> None:
        nonlocal evaluations
        evaluations += images

    if not pipeline.classes:
        cond.pop("label", None)  # known, but nothing that the model takes
    request = requested(request, values)
    part = here().part(count)
    mine = {name: values[part.start : part.stop] for name, values in cond.items()}
    stream = pipeline.plan(mine, seeds=seeds[part.start : part.stop], request=request).images(
        progress, count_evaluations
    )
    facts = {**sampling_facts(pipeline, request), "first_seed": first_seed, "labels": origin}
    adaptive = facts["nfe"] == "adaptive"

    def watched() -> Iterator[Tensor]:
        done = 0
        for images in stream:
            done += len(images)
            if adaptive:
                facts["nfe"] = round(evaluations / done, 1)
            yield images

    own = None if chosen is None else chosen[part.start : part.stop]
    several = part if here().several else None
    return Samples(labelled(watched(), own), chosen, facts, cond.get("text"), several)


def captioned(data: DataSection, count: int, part: Part = "held-out") -> tuple[dict[str, Any], str]:
    """`count` captions, "text", of the images of that part, evenly spread and over and over, with their labels,
    "label", where there are classes; and what they are, in words. Of the training images where none are held out.

    InputError where there are no captions.
    """
    try:
        source = data.open("test" if part == "held-out" else "train")
    except InputError:
        source, part = data.open("train"), "training"
    if not source.captions:
        raise InputError(f"{data.kind}: the data has no captions to sample; give `data.caption_column`")
    places = _evenly(len(source), count)
    cond: dict[str, Any] = {"text": [source.captions[place] for place in places]}
    if source.labels is not None:
        cond["label"] = source.labels[places]
    return cond, f"captions of {part} images"


def sampling_facts(pipeline: Pipeline, request: SamplingRequest) -> dict[str, Any]:
    """What decides a model's images besides seeds and labels, for the record."""
    chosen = pipeline.recipe.sample.override(request)
    layout = pipeline.codec.layout(*pipeline.recipe.data.shape)
    grid = chosen.times(pipeline.transport, layout)
    nfe = chosen.nfe(grid, pipeline.transport)
    return {
        "recipe": pipeline.recipe.name,
        "weights": {"ema": True, **pipeline.record, "sha256": pipeline.weights_hash},
        "sampler": chosen.sampler,
        "steps": None if nfe is None else len(grid) - 1,
        "nfe": "adaptive" if nfe is None else nfe,
        **chosen.choices,
        "guidance": chosen.guidance,
        "interval": chosen.interval,
        "guidance_channels": chosen.guidance_channels,
        **({"level_guidance": chosen.level_guidance} if chosen.level_guidance else {}),
        **({"guidance_path": chosen.guidance_path} if chosen.guidance_path != "whole" else {}),
        **({"threshold": chosen.threshold} if chosen.threshold else {}),
        "weak": _origin(request.weak),
        **({"lower": _origin(request.lower), "lower_noise": request.lower_noise} if request.lower else {}),
        **({"text": pipeline.recipe.text.id, "negative": request.negative} if pipeline.recipe.text else {}),
        "precision": settled(pipeline.device, chosen.precision),
        "device": str(pipeline.device),
    }


def _origin(model: Pipeline | str | None) -> str | None:
    """Where a model is, or was loaded from."""
    return model.record.get("origin") if isinstance(model, Pipeline) else model


def held_out(data: DataSection, count: int) -> Samples | None:
    """At most `count` images of the held-out part, evenly spread; None where the data has none."""
    try:
        source = data.open("test")
    except InputError:
        return None
    captions = source.captions and [source.captions[place] for place in spread(len(source), count)]
    return Samples(in_order(data, "test", limit=count), None, {"files": f"{data.kind} test"}, captions)


def files(path: Path, size: int | None = None, channels: Literal[1, 3] | None = None) -> Samples:
    """The images of a folder (one sub-folder per class, or none), of an ADM .npz (arr_0, and labels), or those that `ditkit
    sample` wrote into a folder.

    `size` and `channels` of a folder's images as in `image_folder`. InputError when they cannot be read.
    """
    if path.suffix == ".npz":
        return Samples(npz_images(path), npz_labels(path), {"files": str(path)})
    if not path.is_dir():
        raise InputError(f"{path}: no such folder of images or .npz file")
    if (made := settings_of(path)) is not None:
        return _made_samples(path, made, size, channels)
    data = image_folder(path, size, channels)
    preparation = f"ADM's crop to {size}" if size else "none"
    return Samples(in_order(data), data.open().labels, {"files": str(path), "preparation": preparation})


def _made_samples(
    path: Path, made: Mapping[str, Any], size: int | None, channels: Literal[1, 3] | None
) -> Samples:
    """The images of a folder of samples with these settings: its single images, or else its samples.npz."""
    protocol = {"files": str(path), "samples": made}
    if not (path / IMAGES).is_dir():
        if (path / NPZ).is_file():
            return replace(files(path / NPZ), protocol=protocol)
        raise InputError(
            f"{path}: it holds no single images and no {NPZ}; give its `ditkit sample` command again, with `npz`"
        )
    data = image_folder(path / IMAGES, size, channels)
    source, row_labels = data.open(), made.get("labels")
    if len(source) != made.get("n"):
        raise InputError(
            f"{path / IMAGES}: {len(source):,} images that can be read, {made.get('n'):,} were asked for; give its `ditkit "
            "sample` command again, it goes on, or move other images away"
        )
    labels = None
    if row_labels:
        labels = torch.tensor(row_labels)[torch.arange(len(source)) % len(row_labels)]
    return Samples(labelled((images for images, _ in in_order(data)), labels), labels, protocol)


def labelled(batches: Iterable[Tensor], labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of images with those of the labels (N,) that are theirs."""
    done = 0
    for images in batches:
        yield images, None if labels is None else labels[done : done + len(images)]
        done += len(images)


def image_folder(path: Path, size: int | None = None, channels: Literal[1, 3] | None = None) -> Folder:
    """A folder whose images must be squares of one size, unless `size` says to crop them as ADM does; grey
    where all of them are, unless `channels` says.

    InputError when they are not of one size, or are no images.
    """
    names = scan(
        path
    ).files  # what is broken or too large among them is left out and named when the folder is opened
    sides: dict[tuple[int, int], str] = {}
    grey, most = True, Folder().max_pixels
    for name in names:
        try:
            with own_limit(), Image.open(path / name) as image:
                if image.width * image.height > most:  # so it is left out
                    continue
                sides.setdefault(image.size, name)
                grey = grey and image.mode in GREY
        except Exception:  # broken, however
            continue
    (first, *others) = sides or {(1, 1): ""}
    if not size and (others or first[0] != first[1]):
        found = " and ".join(f"{sides[some]} {some[0]}x{some[1]}" for some in (first, *others[:1]))
        raise InputError(
            f"{path}: {found}; give `size` N to crop all images to squares of one size as ADM does"
        )
    return Folder(path=path, size=size or first[0], channels=channels or (1 if grey else 3))
