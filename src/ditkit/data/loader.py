"""Batches of training images or clips, each a function of (seed, n), n counting images from the run's first.

Image n of a run is the image at place n mod N of epoch n div N's own permutation, so to resume is to
start at another n, and neither the batch size nor the number of workers changes what is seen. Where images have
several sizes the order, and which of them make a batch, is a plan's (buckets.py).
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from multiprocessing.sharedctypes import RawValue
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ditkit.data.batch import Batch, Share
from ditkit.data.buckets import Plan, places_by_size, shard, written
from ditkit.data.sources import DataSection, Draw, Source, Split, one_shape, stack
from ditkit.device import cores
from ditkit.errors import InputError
from ditkit.progress import progress_bar
from ditkit.randomness import Draws, generator
from ditkit.signals import leave_to_parent, starting_workers

FOR_A_GPU = 4
"""Processes that draw ahead for a GPU, where reading is nothing."""


def batches(
    source: Source,
    config: DataSection,
    *,
    seed: int,
    start: int,
    stop: int,
    batch: int,
    rank: int = 0,
    world: int = 1,
    group: int = 1,
    workers: int | None = 0,
    plan: Plan | None = None,
    draws: Draws | None = None,
    pinned: bool = False,
) -> Generator[Batch]:
    """The images n = start, start + 1, ... below `stop`, `batch` at a time; the last may be fewer.

    With a plan of this source the batches are the plan's, `batch` is not used, and all images of one have one
    size or are packed; those that `start` and `stop` fall into are cut. Of `world` ranks each sees its share of every batch,
    of every `world` groups of `group` images one, which can be none (B = 0), so that all ranks take as many steps. InputError as
    the source raises it.

    `draws` is what a training draws for its images; batches carry it. `workers` processes read and draw ahead; 0 does it in
    this one, None takes as many as there are cores where reading means decoding, and some for a GPU. `pinned` memory is
    copied to a GPU beside its work.
    """
    if workers is None:
        workers = cores() if source.decodes else min(cores(), FOR_A_GPU) if pinned else 0
    parts: Iterable[range]
    if plan is None:
        parts = (range(first, min(first + batch, stop)) for first in range(start, stop, batch))
    else:
        parts = plan.counters(seed, start, stop)
    counters = (
        Part(shard(part, rank, world, group), shard(range(len(part)), rank, world, group), len(part))
        for part in parts
    )
    ending = RawValue("b", False)
    loader = DataLoader(
        Stream(source, config, seed, plan, draws),
        batch_sampler=counters,  # type: ignore[arg-type]  # Stream takes a batch at once
        num_workers=workers,
        pin_memory=pinned,
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
            "checkpoint; `train.workers` 0 reads in the training's own process"
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
                yield source.read(places), labels
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
    places = places_by_size(source.sizes(multiple))
    if size not in places:
        raise InputError(
            f"the {split} part has no images of {written(size)}; there are {', '.join(map(written, places))}"
        )
    picks = places[size]
    return stack(source, picks, size), None if source.labels is None else source.labels[picks]


def _as_it_is(batch: Any) -> Any:
    return batch  # Stream.__getitems__ has collated already


class Part(NamedTuple):
    """What a process reads of a batch."""

    counters: Sequence[int]
    places: Sequence[int]
    """Where these are in the batch."""
    total: int
    """Images of the batch."""


class Stream(Dataset):
    """The training images of run `seed` by their counter n = 0, 1, 2, ..., over all epochs."""

    def __init__(
        self,
        source: Source,
        config: DataSection,
        seed: int,
        plan: Plan | None = None,
        draws: Draws | None = None,
    ):
        self._source, self._config, self._seed, self._plan = source, config, seed, plan
        self._draws = draws
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

    def draw(self, n: int) -> Draw:
        """How image number n is augmented."""
        return Draw(self._seed, n, self._config.flip)

    def __getitem__(self, n: int) -> Batch:
        return self.__getitems__(Part([n], [0], 1))

    def __getitems__(self, part: Part) -> Batch:
        """The images of a part; DataLoader takes it at once. All have one size, or they are packed."""
        counters, share = part.counters, Share(torch.tensor(part.places, dtype=torch.int64), part.total)
        positions = [self.position(n) for n in counters]
        label = None if self._source.labels is None else self._source.labels[positions]
        captions = self._source.captions
        caption = None if captions is None else tuple(captions[place] for place in positions)
        if self._plan is None or not self._plan.packed:
            return replace(self._of_one_size(positions, counters), label=label, caption=caption, share=share)
        runs = groupby(range(len(counters)), key=lambda row: self._size(positions[row]))
        parts = [list(rows) for _, rows in runs] or [[]]
        groups = tuple(
            self._of_one_size([positions[k] for k in rows], [counters[k] for k in rows]) for rows in parts
        )
        index = torch.tensor(counters, dtype=torch.int64)
        return Batch(None, label, index, caption, groups=groups, share=share)

    def _size(self, position: int) -> tuple[int, ...] | None:
        """Of one image; None where all have one."""
        return None if self._plan is None else self._plan.sizes[position]

    def _of_one_size(self, positions: Sequence[int], counters: Sequence[int]) -> Batch:
        """Images of one size with their draws, without labels and captions. They are read in this process's own thread: a
        loader's workers are what runs beside each other."""
        drawn = [self.draw(n) for n in counters]
        found = self._source.read(positions, drawn, self._size(positions[0] if positions else 0))
        index, images = torch.tensor(counters, dtype=torch.int64), self._source.gives == "images"
        batch = Batch(found if images else None, None, index, moments=None if images else found)
        return batch if self._draws is None else replace(batch, draws=self._draws(counters, batch.size))
