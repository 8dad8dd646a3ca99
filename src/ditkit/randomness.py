"""Randomness as a function of what it is for, not of what ran before.

Every draw comes from a Philox counter-based generator keyed by (seed, index) with the purpose as
the counter (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), so image k is the
same whatever the batch, the rank, the device or the point of resumption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby, pairwise
from math import inf, prod
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ditkit.device import sent
from ditkit.errors import InputError
from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Purpose = Literal[
    "order",
    "augment",
    "codec",
    "train",
    "sample",
    "bootstrap",
    "label",
    "validate",
    "distractors",
    "given",
    "cascade",
    "weights",
]
_COUNTER = {
    "order": 0,
    "augment": 1,
    "codec": 2,
    "train": 3,
    "sample": 4,
    "bootstrap": 5,
    "label": 6,
    "validate": 7,
    "distractors": 8,
    "given": 9,
    "cascade": 10,
    "weights": 11,
}


def generator(seed: int, index: int, purpose: Purpose) -> np.random.Generator:
    """The random stream of item `index` of the run `seed`; InputError unless both are in [0, 2^64)."""
    return _philox(seed, index, _COUNTER[purpose])


def _philox(seed: int, index: int, counter: int) -> np.random.Generator:
    if not (0 <= seed < 2**64 and 0 <= index < 2**64):
        raise InputError(f"seed {seed} and index {index} must both be whole numbers from 0 to 2^64 - 1")
    key = np.array([seed, index], dtype=np.uint64)  # numpy would take a list with 2^64 - 1 through float64
    counters = np.array([0, 0, 0, counter], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counters))


def _counter(purpose: str) -> int:
    """Of one of ditkit's own purposes, or of any other, by its name: those are from 2^63 on."""
    if purpose in _COUNTER:
        return _COUNTER[purpose]
    return 2**63 | int.from_bytes(blake2b(purpose.encode(), digest_size=8).digest())


class Stream(NamedTuple):
    """Random numbers that every image of a training has for one use: a function of (seed, n)."""

    name: str
    purpose: str
    """Streams of a purpose share a generator. A new stream takes a name that no other has, its own."""
    law: Literal["uniform", "normal"]
    """float64 in [0, 1), or float32 and standard normal."""
    shape: tuple[int, ...] | Literal["state", "tokens"] = "state"
    """Of one image's numbers; that of its state, or one for each of its tokens."""
    after: int = 0
    """How many uniform numbers of the purpose come before, which belong to other streams."""

    @property
    def ends(self) -> float:
        """How many of the purpose's numbers come before what follows; nothing can follow normal ones."""
        return inf if self.law == "normal" or isinstance(self.shape, str) else self.after + prod(self.shape)


@dataclass(frozen=True)
class Draws:
    """What a training draws for its images: some streams, where `shapes` says which state an image of some size has, and
    `tokens` how many tokens (needed where a stream has a number for each).

    It holds no network, so that a loader's workers can draw ahead.
    """

    seed: int
    streams: tuple[Stream, ...]
    shapes: Mapping[tuple[int, ...], tuple[int, ...]]
    tokens: Mapping[tuple[int, ...], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """ValueError where two streams have one name, or take the same numbers of a generator."""
        for before, stream in pairwise(
            sorted(self.streams, key=lambda stream: (stream.purpose, stream.after))
        ):
            if before.purpose == stream.purpose and stream.after < before.ends:
                raise ValueError(
                    f"the streams {before.name} and {stream.name} take the same numbers of {stream.purpose!r}"
                )
        names = [stream.name for stream in self.streams]
        if again := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two streams are called {again[0]}; give one another name")

    def __call__(self, numbers: Sequence[int], size: tuple[int, ...]) -> dict[str, Tensor]:
        """Each stream's numbers of the images n = `numbers`, all of one size, by its name: (B, *shape), on the CPU."""
        found = {
            stream.name: np.empty(
                (len(numbers), *self._shape(stream, size)),
                np.float64 if stream.law == "uniform" else np.float32,
            )
            for stream in self.streams
        }
        ordered = sorted(self.streams, key=lambda stream: (stream.purpose, stream.after))
        for purpose, group in groupby(ordered, key=lambda stream: stream.purpose):
            streams = list(group)
            for row, n in enumerate(numbers):
                random = _philox(self.seed, n, _counter(purpose))
                _fill(random, streams, [found[stream.name][row : row + 1] for stream in streams])
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def _shape(self, stream: Stream, size: tuple[int, ...]) -> tuple[int, ...]:
        if stream.shape == "state":
            return self.shapes[size]
        return (self.tokens[size],) if stream.shape == "tokens" else stream.shape


def _fill(random: np.random.Generator, streams: Sequence[Stream], rows: Sequence[np.ndarray]) -> None:
    """Draw the streams of one purpose, in their order, into their rows."""
    passed = 0
    for stream, row in zip(streams, rows, strict=True):
        random.random(stream.after - passed)
        if stream.law == "uniform":
            random.random(out=row)
            passed = stream.after + row.size
        else:
            random.standard_normal(dtype=np.float32, out=row)


class RowNoise:
    """Standard normal noise whose row k is drawn from the stream of `seeds[k]` alone.

    Each call goes on along every row's own stream, so a sampler calls it once for the start and
    once for each stochastic step. Drawn on the CPU in float32: the same on every device.
    """

    def __init__(self, seeds: Sequence[int], purpose: Purpose = "sample"):
        self._streams = [generator(seed, 0, purpose) for seed in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        """Noise of the shape, dtype and device of `like` (B, ...), B = len(seeds)."""
        if len(like) != len(self._streams):
            raise ValueError(f"{len(like)} rows asked of noise made for {len(self._streams)} seeds")
        shape = like.shape[1:]
        rows = [stream.standard_normal(shape, dtype=np.float32) for stream in self._streams]
        return sent(torch.from_numpy(np.stack(rows)), like.device, like.dtype)
