"""Batches of training images, each a function of (seed, n), n counting images from the run's first.

Image n of a run is the image at place n mod N of epoch n div N's own permutation, so to resume is to
start at another n, and neither the batch size nor the number of workers changes what is seen.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ditkit.data.latents.source import Latents
from ditkit.data.sources import Arrays, DataSection, Source, Split, stack
from ditkit.data.transforms import prepare
from ditkit.errors import InputError
from ditkit.progress import progress_bar
from ditkit.randomness import generator


class Batch(NamedTuple):
    """B training images."""

    images: Tensor  # uint8 (B, C, H, W); of latents on disk their moments, float32
    label: Tensor | None  # int64 (B,); None when the data is unlabelled
    index: Tensor  # type: ignore[assignment]  # int64 (B,): the counters n; hides tuple.index
    caption: tuple[str, ...] | None = None  # (B,); None when the data has no captions


def batches(
    source: Source | Latents,
    config: DataSection,
    *,
    seed: int,
    start: int,
    stop: int,
    batch: int,
    step: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """The images n = start, start + step, ... below `stop`, `batch` at a time; the last may be fewer.

    Of W ranks, rank r passes start + r and step W: together they see what one process would.
    `workers` processes decode ahead; 0 decodes in this one. InputError as the source raises it.
    """
    loader = DataLoader(
        Stream(source, config, seed),
        sampler=range(start, stop, step),
        batch_size=batch,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # the loader seeds its workers from it, not from torch's global state
    )
    try:
        yield from loader
    except InputError as error:  # from a worker it arrives wrapped in that process's traceback
        raise InputError(
            str(error).strip().splitlines()[-1].removeprefix("ditkit.errors.InputError: ")
        ) from error


def in_order(
    config: DataSection, split: Split = "train", limit: int | None = None, batch: int = 500
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Every image of a part once, without augmentation, in order, `batch` at a time: uint8 (B, C, H, W), and
    int64 labels (B,) or None.

    With `limit`, that many at even distances, so that data sorted by class keeps all its classes.
    InputError at once when the part cannot be opened.
    """
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


def _as_it_is(batch: Any) -> Any:
    return batch  # Stream.__getitems__ has collated already


class Stream(Dataset):
    """The training images of run `seed` by their counter n = 0, 1, 2, ..., over all epochs."""

    def __init__(self, source: Source | Latents, config: DataSection, seed: int):
        self._source, self._config, self._seed = source, config, seed
        self._epoch, self._order = -1, np.empty(0, dtype=int)

    def position(self, n: int) -> int:
        """Which of the source's images is number n."""
        epoch, place = divmod(n, len(self._source))
        if epoch != self._epoch:
            order = generator(self._seed, epoch, "order").permutation(len(self._source))
            self._epoch, self._order = epoch, order
        return int(self._order[place])

    def flipped(self, n: int) -> bool:
        """Whether image number n is mirrored."""
        return self._config.flip and generator(self._seed, n, "augment").random() < 0.5

    def __getitem__(self, n: int) -> Batch:
        return self.__getitems__([n])

    def __getitems__(self, counters: Sequence[int]) -> Batch:
        """The images of these counters; DataLoader asks for a whole batch at once."""
        positions = [self.position(n) for n in counters]
        images = self._fetch(positions, [self.flipped(n) for n in counters])
        label = None if self._source.labels is None else self._source.labels[positions]
        captions = self._source.captions
        caption = None if captions is None else tuple(captions[place] for place in positions)
        return Batch(images, label, torch.tensor(counters), caption)

    def _fetch(self, positions: list[int], flipped: list[bool]) -> Tensor:
        """In this process's own thread: a loader's workers are what runs beside each other."""
        source, config = self._source, self._config
        if isinstance(source, Latents):
            return source.moments(positions, flipped)
        if isinstance(source, Arrays):
            images = stack(source, positions, config)
        else:
            images = torch.stack([prepare(source[k][0], config.size, config.channels) for k in positions])
        chosen = torch.tensor(flipped)
        images[chosen] = images[chosen].flip(-1)
        return images
