"""Randomness as a function of what it is for, not of what ran before.

Every draw comes from a Philox counter-based generator keyed by (seed, index) with the purpose as
the counter (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), so image k is the
same whatever the batch, the rank, the device or the point of resumption.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ditkit.errors import InputError

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
}


def generator(seed: int, index: int, purpose: Purpose) -> np.random.Generator:
    """The random stream of item `index` of the run `seed`; InputError unless both are in [0, 2^64)."""
    if not (0 <= seed < 2**64 and 0 <= index < 2**64):
        raise InputError(f"seed {seed} and index {index} must both be whole numbers from 0 to 2^64 - 1")
    key = np.array([seed, index], dtype=np.uint64)  # numpy would take a list with 2^64 - 1 through float64
    counter = [0, 0, 0, _COUNTER[purpose]]
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


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
        return torch.from_numpy(np.stack(rows)).to(like)
