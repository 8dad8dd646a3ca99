"""Writing the cache of `ditkit encode` (`cache.py`), shard by shard."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ditkit.config import read_section
from ditkit.data.buckets import Size, places_by_size
from ditkit.data.latents.cache import (
    CAPTIONS,
    CHECKSUM,
    FACTS,
    INDEX,
    LABELS,
    PLAN,
    SIZES,
    Index,
    is_sound,
)
from ditkit.data.latents.source import channel_means
from ditkit.data.sources import Source, upgraded
from ditkit.errors import InputError, NotFinite
from ditkit.files import save_tensors, tensors_hash
from ditkit.lazy import torch
from ditkit.progress import progress_bar
from ditkit.records import parse_json, write_whole

if TYPE_CHECKING:
    from torch import Tensor


def write_cache(
    out: Path,
    source: Source,
    moments: Callable[[Tensor], Tensor],
    plan: Index,
    batch: int = 64,
) -> int:
    """Encode the images of `source` into the folder `out`, or go on doing so, or make again what is damaged; how
    many were encoded now. Several processes share the files, and the first one writes the index.

    `moments` maps uint8 (B, C, H, W) to (B, 2 channels, height, width); images of several sizes are encoded size by size.
    InputError when the folder holds the cache of another plan or something else, or cannot be written; NotFinite where the
    encoder's numbers are not.
    """
    from ditkit.processes import here  # imports torch

    processes = here()
    with processes.in_turn():
        _claim(out, plan)
    encoded, files = 0, plan.files[processes.rank :: processes.world]
    sizes = None if plan.multiple is None else source.sizes(plan.multiple)
    with progress_bar(sum(len(places) for _, places in files), "encoding", "img") as bar:
        for name, places in files:
            if not is_sound(out / name, plan, len(places)):
                _save(out / name, _shard(source, moments, plan, places, sizes, batch, bar.update))
                encoded += len(places)
            else:
                bar.update(len(places))
    encoded = sum(processes.gathered(encoded))
    if processes.first:
        _finish(out, source, plan)
    return encoded


def _finish(out: Path, source: Source, plan: Index) -> None:
    """Write what is known when all files are there, the index last."""
    if source.captions is not None:
        write_whole(out / CAPTIONS, json.dumps(list(source.captions)).encode())
    mean, std = _statistics([out / name for name, _ in plan.files])
    index = plan.model_copy(update={"mean": mean, "std": std})
    write_whole(out / INDEX, (index.model_dump_json(indent=1) + "\n").encode())
    (out / PLAN).unlink(missing_ok=True)


def _claim(out: Path, plan: Index) -> None:
    """Make `out` the folder of this plan, unless it is another's."""
    for name in (INDEX, PLAN):
        if (out / name).exists():
            found = read_section(Index, out / name).model_copy(update={"mean": None, "std": None})
            old, new = found.model_dump(mode="json"), plan.model_dump(mode="json")
            old["data"] = new["data"] | upgraded(old["data"])
            if old["encoder"] == new["encoder"]:  # wherever its files lie
                old["codec"]["id"] = new["codec"]["id"]
            for field in old:
                if old[field] != new[field]:
                    raise InputError(
                        f"`out` {out} holds latents with {field} {old[field]!s:.80}, not {new[field]!s:.80}; give the "
                        "same command to go on, or another `out`"
                    )
            return
    if out.exists() and any(path.name[0] != "." for path in out.iterdir()):
        raise InputError(f"`out` {out} is not empty and holds no latents; give another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"`out` {out}: cannot be made ({error.strerror}); give another folder") from None
    write_whole(out / PLAN, (plan.model_dump_json(indent=1) + "\n").encode())


def _shard(
    source: Source,
    moments: Callable[[Tensor], Tensor],
    plan: Index,
    places: range,
    sizes: Sequence[Size] | None,
    batch: int,
    done: Callable[[int], object],
) -> dict[str, Tensor]:
    """The tensors of one shard, by name, of images of these sizes in pixels, or of one; `done` is called after every batch."""
    tensors: dict[str, Tensor] = {}
    latent: dict[Size | None, Size] = {}
    own: dict[Size | None, Sequence[int]] = {None: places}
    if sizes is not None:
        by_size = places_by_size(sizes[places.start : places.stop])
        own = {size: [places[k] for k in some] for size, some in by_size.items()}
    for size, some in own.items():
        for name, rows in _encoded(source, moments, plan, some, size, batch, done).items():
            latent[size] = tuple(rows.shape[2:])
            tensors[plan.of_size(name, latent[size])] = rows
    if sizes is not None:
        tensors[SIZES] = torch.tensor([latent[sizes[place]] for place in places], dtype=torch.int32)
    if source.labels is not None:
        tensors[LABELS] = source.labels[list(places)]
    return tensors


def _encoded(
    source: Source,
    moments: Callable[[Tensor], Tensor],
    plan: Index,
    places: Sequence[int],
    size: Size | None,
    batch: int,
    done: Callable[[int], object],
) -> dict[str, Tensor]:
    """The moments of images of one size, and of them mirrored, by the names of `Index.tensors`."""
    dtype = getattr(torch, plan.dtype)
    parts: dict[str, list[Tensor]] = {name: [] for name in plan.tensors}
    picks = [places[start : start + batch] for start in range(0, len(places), batch)]
    for images in _ahead(partial(source.read, size=size), picks):
        for name, some in zip(plan.tensors, (images, images.flip(-1)), strict=False):
            parts[name].append(moments(some).to("cpu", dtype))
        done(len(images))
    tensors = {name: torch.cat(rows).contiguous() for name, rows in parts.items()}
    for rows in tensors.values():
        if lost := (~rows.flatten(1).isfinite().all(1)).nonzero().flatten().tolist():
            raise NotFinite(
                f"the autoencoder {plan.codec['id']} makes numbers of image {places[lost[0]]} that are not finite in "
                f"{plan.dtype}; check it, or give `codec.precision` fp32 and `dtype` float32"
            )
    return tensors


def _ahead(read: Callable[[Sequence[int]], Tensor], parts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Each part, read while the one before it is worked on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(read, parts[0])
        for following in parts[1:]:
            ready, coming = coming, pool.submit(read, following)
            yield ready.result()
        yield coming.result()


def _save(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write a shard, with its channels' means of the latents and of their squares and its checksum, and put it in its
    place. Images of several sizes count by their places."""
    alike: dict[Size, list[Tensor]] = {}
    for name, rows in tensors.items():
        if name not in (LABELS, SIZES):
            alike.setdefault(tuple(rows.shape[2:]), []).append(rows)
    counts = [
        sum(map(len, several)) * (math.prod(size) if SIZES in tensors else 1)
        for size, several in alike.items()
    ]
    mean, square = _weighted(counts, [channel_means(torch.cat(several)) for several in alike.values()])
    facts = {
        "mean": mean.tolist(),
        "square": square.tolist(),
        "rows": sum(counts),
        CHECKSUM: tensors_hash(tensors),
    }
    try:
        save_tensors(file, tensors, {FACTS: json.dumps(facts)})
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file}: cannot be written ({error}); make room on the disk and give the same command, it goes on"
        ) from None


def _statistics(files: Sequence[Path]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and spread of each channel of the latents, from what `_save` wrote into the files."""
    rows, values = [], []
    for file in files:
        with safe_open(file, "pt") as reader:
            means = parse_json(reader.metadata()[FACTS])
        rows.append(means["rows"])
        values.append([torch.tensor(means[name], dtype=torch.float64) for name in ("mean", "square")])
    mean, square = _weighted(rows, values)
    std = (square - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def _weighted(counts: Sequence[int], values: Sequence[Sequence[Tensor]]) -> Tensor:
    """The mean, (2, channels), of two values of each channel, each counted so often."""
    weights = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    return torch.einsum("f,fqc->qc", weights, torch.stack([torch.stack([*both]) for both in values]))
