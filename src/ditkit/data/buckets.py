"""Which samples make a batch where they have several sizes: buckets of equal size, or packed ones of all sizes.

A bucket is the samples of one size. Its batches hold as many as the budget has room for,

    batch = budget // tokens of one sample,

so small samples come in large batches and a step costs about the same whichever bucket it is from. Nothing is
padded, resized or dropped; the order of an epoch is a function of (seed, epoch) alone. The second way is
packing (Dehghani et al., "Patch n' Pack: NaViT", 2023): samples of all sizes, as many as the budget has room for.

What size an image has is transforms.py's rule, how a batch is read loader.py's, what a packed batch computes the
network's.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np

from ditkit.data.sources import DataSection, Source
from ditkit.errors import InputError
from ditkit.randomness import generator

Size = tuple[int, ...]  # (H, W) of images, (F, H, W) of clips
Part = TypeVar("Part", range, np.ndarray)


class Bucket(NamedTuple):
    """The samples of one size."""

    size: Size
    images: int
    batch: int  # of them at a time; the last batch of an epoch may be smaller
    tokens: int  # of one sample


class Plan:
    """The batches of every epoch: each sample once, all of a batch of one size unless they are packed, none over the
    budget."""

    def __init__(
        self,
        sizes: Sequence[Size],
        tokens: Callable[[Size], int],
        budget: int,
        without: Collection[str] = (),
        packed: bool = False,
        pixels: int = 1,
    ):
        """For samples of these sizes, which are `tokens(size)` tokens each, and at most `budget` tokens a batch; `packed`:
        of samples of all sizes.

        `without` names sizes in pixels ("28x12") whose samples are left out; a side of 1 is so many `pixels`. InputError when
        one sample is over the budget, `without` names a size that no sample has, or it leaves nothing.
        """
        self.sizes, self.budget, self.packed, self._pixels = sizes, budget, packed, pixels
        places = places_by_size(sizes)
        names = {self._written(size): size for size in places}
        for name in without:
            if name not in names:
                raise InputError(
                    f"`data.without` {name}: nothing has that size; there are {', '.join(names)}"
                )
        self.left_out = {
            names[name]: len(places.pop(names[name])) for name in without if names[name] in places
        }
        if not places:
            raise InputError(
                f"`data.without` {' '.join(without)} leaves nothing to train on; name fewer sizes"
            )
        self._places = {size: np.array(found) for size, found in places.items()}
        self.buckets = [
            Bucket(size, len(found), budget // tokens(size), tokens(size)) for size, found in places.items()
        ]
        largest = max(self.buckets, key=lambda bucket: bucket.tokens)
        if largest.tokens > budget:
            raise InputError(
                f"`train.tokens` {budget} is less than the {largest.tokens} tokens of one sample of "
                f"{self._written(largest.size)}; give {largest.tokens} or more, or a smaller `data.size`"
            )

    def __len__(self) -> int:
        """Samples an epoch."""
        return sum(bucket.images for bucket in self.buckets)

    def batches(self, seed: int, epoch: int) -> list[np.ndarray]:
        """The positions of an epoch's samples, batch by batch: int64 (B,) each.

        Every bucket is shuffled and cut into batches, then the batches are shuffled. Packed, all samples are shuffled
        and cut where the next one has no room; within a batch they are sorted by size.
        """
        random = generator(seed, epoch, "order")
        if self.packed:
            order = random.permutation(np.concatenate(list(self._places.values())))
            parts = np.split(order, self._cuts([self.lengths[place] for place in order]))
            return [np.array(sorted(part, key=self.sizes.__getitem__)) for part in parts]
        parts = []
        for bucket in self.buckets:
            order = random.permutation(self._places[bucket.size])
            parts += [order[start : start + bucket.batch] for start in range(0, len(order), bucket.batch)]
        return [parts[place] for place in random.permutation(len(parts))]

    def _cuts(self, lengths: Sequence[int]) -> list[int]:
        """Where to cut so that no part has more tokens than the budget."""
        cuts, filled = [], 0
        for place, length in enumerate(lengths):
            if filled + length > self.budget:
                cuts.append(place)
                filled = 0
            filled += length
        return cuts

    @cached_property
    def lengths(self) -> dict[int, int]:
        """Tokens of each sample, by its position."""
        return {
            place: bucket.tokens for bucket in self.buckets for place in self._places[bucket.size].tolist()
        }

    def counters(self, seed: int, start: int, stop: int) -> Iterator[range]:
        """The batches of a run from its sample n = `start` to before `stop`, each as its counters n; sample n is the
        one at place n mod N of epoch n div N, N = len(self). The first and the last batch may be cut."""
        epoch, place = divmod(start, len(self))
        first = start - place
        while first < stop:
            for batch in self.batches(seed, epoch):
                part = range(max(first, start), min(first + len(batch), stop))
                first += len(batch)
                if part:
                    yield part
            epoch += 1

    def _written(self, size: Size) -> str:
        """In pixels."""
        return written(tuple(side * self._pixels for side in size))

    def describe(self) -> str:
        """A table of the buckets, and how much of the budget their batches fill."""
        rows = [("size", "images", "batch", "tokens a batch")]
        for bucket in self.buckets:
            most = min(bucket.batch, bucket.images)
            rows.append(
                (self._written(bucket.size), f"{bucket.images:,}", f"{most:,}", f"{most * bucket.tokens:,}")
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        batches, count = len(self.batches(seed=0, epoch=0)), len(self.buckets)
        tokens = sum(bucket.images * bucket.tokens for bucket in self.buckets)
        lines.append(
            f"{len(self):,} images of {count} size{'s' * (count > 1)} in {batches:,} {'packed ' * self.packed}batches an epoch, "
            "which fill "
            f"{tokens / (batches * self.budget):.1%} of {self.budget:,} tokens on average"
        )
        if self.left_out:
            named = ", ".join(
                f"{self._written(size)} ({count:,} images)" for size, count in self.left_out.items()
            )
            lines.append(f"left out of training: {named}")
        return "\n".join(lines)


def plan_for(
    source: Source,
    config: DataSection,
    multiple: int,
    tokens: Callable[[Size], int],
    budget: int,
    packed: bool = False,
) -> Plan:
    """The plan of a source's training: `tokens` of each of its sizes, at most `budget` a batch.

    InputError: see `Source.sizes`, `Plan`.
    """
    return Plan(source.sizes(multiple), tokens, budget, config.without, packed, source.pixels)


def places_by_size(sizes: Sequence[Size]) -> dict[Size, list[int]]:
    """Where each size is, the sizes sorted."""
    found: dict[Size, list[int]] = {}
    for place, size in enumerate(sizes):
        found.setdefault(size, []).append(place)
    return dict(sorted(found.items()))


def shard(batch: Part, rank: int, world: int, group: int = 1) -> Sequence[int]:
    """A rank's part of a batch, of its positions or counters; those of all ranks together are all of it, and `group` of them
    that follow each other stay together."""
    return [n for place, n in enumerate(batch) if place // group % world == rank]


def written(size: Size) -> str:
    """28x12"""
    return "x".join(map(str, size))
