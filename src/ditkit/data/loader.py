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

from ditkit.data.sources import Arrays, DataSection, Source, Split, stack
from ditkit.data.transforms import prepare
from ditkit.errors import InputError
from ditkit.randomness import generator


class Batch(NamedTuple):
    """B training images."""

    images: Tensor  # uint8 (B, C, H, W)
    label: Tensor | None  # int64 (B,); None when the data is unlabelled
    index: Tensor  # type: ignore[assignment]  # int64 (B,): the counters n; hides tuple.index


def batches(
    source: Source,
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


def load_all(
    config: DataSection, split: Split = "train", limit: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """All images of a part without augmentation, in order: uint8 (N, C, H, W), and int64 labels (N,) or None.

    With `limit`, that many at even distances, so that data sorted by class keeps all its classes.
    """
    source = config.open(split)
    count = len(source) if limit is None else min(limit, len(source))
    picks = [row * len(source) // count for row in range(count)]
    images = source.images[picks] if isinstance(source, Arrays) else stack(source, picks, config)
    return images, None if source.labels is None else source.labels[picks]


def _as_it_is(batch: Any) -> Any:
    return batch  # Stream.__getitems__ has collated already


class Stream(Dataset):
    """The training images of run `seed` by their counter n = 0, 1, 2, ..., over all epochs."""

    def __init__(self, source: Source, config: DataSection, seed: int):
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
        images = self._fetch(positions)
        label = None if self._source.labels is None else self._source.labels[positions]
        if self._config.flip:
            chosen = torch.tensor([self.flipped(n) for n in counters])
            images[chosen] = images[chosen].flip(-1)
        return Batch(images, label, torch.tensor(counters))

    def _fetch(self, positions: list[int]) -> Tensor:
        source, config = self._source, self._config
        if isinstance(source, Arrays) and source.images.shape[1:] == (
            config.channels,
            config.size,
            config.size,
        ):
            return source.images[positions]
        return torch.stack([prepare(source[place][0], config.size, config.channels) for place in positions])
