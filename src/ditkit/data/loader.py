"""Batches of training images or clips, each a function of (seed, n), n counting images from the run's first.

Image n of a run is the image at place n mod N of epoch n div N's own permutation, so to resume is to
start at another n, and neither the batch size nor the number of workers changes what is seen. Where images have
several sizes the order, and which of them make a batch, is a plan's (buckets.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.sharedctypes import RawValue
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from ditkit.data.buckets import Plan, places_by_size, shard, sizes, written
from ditkit.data.latents.source import Latents
from ditkit.data.sources import Arrays, Clips, DataSection, Source, Split, Tensors, one_shape, reader, stack
from ditkit.device import cores
from ditkit.errors import InputError
from ditkit.progress import progress_bar
from ditkit.randomness import generator
from ditkit.signals import leave_to_parent, starting_workers


class Batch(NamedTuple):
    """B training images or clips."""

    images: Tensor  # uint8, or numbers float32 in [-1, 1], (B, C, H, W), clips (B, C, F, H, W); of latents their moments
    label: Tensor | None  # int64 (B,); None when the data is unlabelled
    index: Tensor  # type: ignore[assignment]  # int64 (B,): the counters n; hides tuple.index
    caption: tuple[str, ...] | None = None  # (B,); None when the data has no captions
    packed: tuple[Tensor, ...] = ()  # of a packed plan each image by itself, (C, H, W), and `images` is empty


def batches(
    source: Source | Latents,
    config: DataSection,
    *,
    seed: int,
    start: int,
    stop: int,
    batch: int,
    rank: int = 0,
    world: int = 1,
    workers: int | None = 0,
    plan: Plan | None = None,
) -> Iterator[Batch]:
    """The images n = start, start + 1, ... below `stop`, `batch` at a time; the last may be fewer.

    With a plan of this source the batches are the plan's, `batch` is not used, and all images of one have one
    size or are packed; those that `start` and `stop` fall into are cut. Of `world` ranks each sees its share, together what one
    process would: of every `world` images one, of a plan's batches their `shard`, which can be empty (B = 0), so
    that all ranks take as many steps. `workers` processes read ahead; 0 reads in this one, None takes as many as
    there are cores where reading means decoding. InputError as the source raises it.
    """
    if workers is None:
        workers = cores() if getattr(source, "decodes", False) else 0
    counters: Iterable[list[int]]
    if plan is None:
        counters = BatchSampler(shard(range(start, stop), rank, world), batch, drop_last=False)
    else:
        counters = (list(shard(part, rank, world)) for part in plan.counters(seed, start, stop))
    ending = RawValue("b", False)
    loader = DataLoader(
        Stream(source, config, seed, plan),
        batch_sampler=counters,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=partial(_leave_signals, ending),
        generator=torch.Generator(),  # the loader seeds its workers from it, not from torch's global state
    )
    try:
        with workers_named():
            with starting_workers():
                started = iter(loader)
            yield from started
    except InputError as error:  # from a worker it arrives wrapped in that process's traceback
        raise InputError(
            str(error).strip().splitlines()[-1].removeprefix("ditkit.errors.InputError: ")
        ) from error
    finally:
        ending.value = True


@contextmanager
def workers_named() -> Iterator[None]:
    """A worker that was killed is an InputError in here. torch raises its own wherever the main thread is just then, in a
    step of training as well as in the loader."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:  # the latter where it died while handing over a batch
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a process that reads images ended, perhaps killed for memory; the same command goes on from the last "
            "checkpoint; --train.workers 0 reads in the training's own process"
        ) from error


def _leave_signals(ending: Any, number: int) -> None:
    leave_to_parent(ending)


def in_order(
    config: DataSection, split: Split = "train", limit: int | None = None, batch: int = 500
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Every image of a part once, without augmentation, in order, `batch` at a time: uint8 (B, C, H, W), or numbers
    float32 in [-1, 1], of clips the middle ones (B, C, F, H, W), and int64 labels (B,) or None.

    With `limit`, that many at even distances, so that data sorted by class keeps all its classes.
    InputError at once when the part cannot be opened; native images are `load_size`'s.
    """
    one_shape(config, None)
    source = config.open(split)
    picks = spread(len(source), limit)
    count = len(picks)

    def read() -> Iterator[tuple[Tensor, Tensor | None]]:
        with progress_bar(count, "reading images", "img", delay=2.0) as bar:
            for start in range(0, count, batch):
                places = picks[start : start + batch]
                labels = None if source.labels is None else source.labels[places]
                yield stack(source, places, config, shown=False), labels
                bar.update(len(places))

    return read()


def spread(length: int, limit: int | None = None) -> list[int]:
    """At most `limit` places among `length`, at even distances."""
    count = length if limit is None else min(limit, length)
    return [row * length // count for row in range(count)]


def load_all(
    config: DataSection, split: Split = "train", limit: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """All of `in_order` in memory: uint8 (N, C, H, W), and int64 labels (N,) or None."""
    images, labels = zip(*in_order(config, split, limit), strict=True)
    return torch.cat(images), None if labels[0] is None else torch.cat(labels)


def load_size(
    config: DataSection, split: Split, size: tuple[int, ...], multiple: int
) -> tuple[Tensor, Tensor | None]:
    """All images of a part that have one size, in order: uint8 (N, C, *size), and int64 labels (N,) or None.

    InputError, naming the sizes there are, when there is none.
    """
    source = config.open(split)
    places = places_by_size(sizes(source, config, multiple))
    if size not in places:
        raise InputError(
            f"the {split} part has no images of {written(size)}; there are {', '.join(map(written, places))}"
        )
    picks = places[size]
    return stack(source, picks, config, size), None if source.labels is None else source.labels[picks]


def _as_it_is(batch: Any) -> Any:
    return batch  # Stream.__getitems__ has collated already


class Stream(Dataset):
    """The training images of run `seed` by their counter n = 0, 1, 2, ..., over all epochs."""

    def __init__(self, source: Source | Latents, config: DataSection, seed: int, plan: Plan | None = None):
        self._source, self._config, self._seed, self._plan = source, config, seed, plan
        self._length = len(source) if plan is None else len(plan)
        self._epoch, self._order = -1, np.empty(0, dtype=int)

    def position(self, n: int) -> int:
        """Which of the source's images is number n."""
        epoch, place = divmod(n, self._length)
        if epoch != self._epoch:
            if self._plan is None:
                order = generator(self._seed, epoch, "order").permutation(self._length)
            else:
                order = np.concatenate(self._plan.batches(self._seed, epoch))
            self._epoch, self._order = epoch, order
        return int(self._order[place])

    def flipped(self, n: int) -> bool:
        """Whether image number n is mirrored."""
        return self._config.flip and generator(self._seed, n, "augment").random() < 0.5

    def start(self, n: int) -> np.random.Generator:
        """What draws where clip number n starts; the same whether or not clips are mirrored."""
        draw = generator(self._seed, n, "augment")
        draw.random()  # the flip's
        return draw

    def __getitem__(self, n: int) -> Batch:
        return self.__getitems__([n])

    def __getitems__(self, counters: Sequence[int]) -> Batch:
        """The images of these counters; DataLoader asks for a whole batch at once, which has one size."""
        positions = [self.position(n) for n in counters]
        packed: tuple[Tensor, ...] = ()
        if self._plan is not None and self._plan.packed:
            packed = tuple(self._fetch([k], [n])[0] for k, n in zip(positions, counters, strict=True))
            images = torch.empty(0, dtype=torch.uint8)
        else:
            images = self._fetch(positions, counters)
        label = None if self._source.labels is None else self._source.labels[positions]
        captions = self._source.captions
        caption = None if captions is None else tuple(captions[place] for place in positions)
        return Batch(images, label, torch.tensor(counters, dtype=torch.int64), caption, packed)

    def _fetch(self, positions: Sequence[int], counters: Sequence[int]) -> Tensor:
        """In this process's own thread: a loader's workers are what runs beside each other."""
        source, config = self._source, self._config
        flipped = [self.flipped(n) for n in counters]
        if isinstance(source, Latents):
            return source.moments(positions, flipped)
        if self._plan is None:
            shape = one_shape(config, None)
        else:
            shape = self._plan.sizes[positions[0] if positions else 0]
        if isinstance(source, Tensors) or (isinstance(source, Arrays) and source.boxes is None):
            images = stack(source, positions, config, shape)
        else:
            read = reader(source, config, shape)
            drawn = isinstance(source, Clips)
            images = torch.empty((len(positions), config.channels, *shape), dtype=torch.uint8)
            for row, (place, n) in enumerate(zip(positions, counters, strict=True)):
                images[row] = read(place, self.start(n) if drawn else None)
        chosen = torch.tensor(flipped, dtype=torch.bool)
        images[chosen] = images[chosen].flip(-1)
        return images
