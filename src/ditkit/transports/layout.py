"""How a state is made of parts, so that everything else can treat it element by element."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ditkit.errors import InputError


@dataclass(frozen=True)
class Layout:
    """A state of one part: one noise level, one loss, whatever its shape.

    States of several parts (the levels of a pyramid, the frames of a clip) subclass it.
    """

    shape: tuple[int, ...]
    """Of one state, without the batch."""
    parts: int = 1

    def expand(self, values: Tensor) -> Tensor:
        """(B,) or (B, K) values, one per part, to what broadcasts with a state (B, *shape)."""
        return values.reshape(len(values), *[1] * len(self.shape))

    def mean(self, x: Tensor) -> Tensor:
        """The mean over each part: (B, *shape) -> (B, K)."""
        return x.flatten(1).mean(1, keepdim=True)


@dataclass(frozen=True)
class Pyramid(Layout):
    """The resolutions of one image, the highest first, packed one after another: states (B, N)."""

    levels: tuple[tuple[int, int, int], ...] = ()
    """(C, H, W) of each."""

    @classmethod
    def of(cls, channels: int, height: int, width: int, ratios: Sequence[int]) -> "Pyramid":
        """For an image of that size at the highest level; `ratios` of the levels' sides to the lowest's, such as
        (16, 4, 1). InputError where they do not divide the image's."""
        levels = []
        for ratio in ratios:
            shrunk, rest = divmod(ratios[0], ratio)
            if rest or height % shrunk or width % shrunk:
                raise InputError(
                    f"an image of {height}x{width} has no levels of {':'.join(map(str, ratios))}; its sides must be "
                    f"multiples of {ratios[0]}"
                )
            levels.append((channels, height // shrunk, width // shrunk))
        return cls((sum(map(math.prod, levels)),), len(levels), tuple(levels))

    @property
    def ratios(self) -> Tensor:
        """float64 (K,): how many times each level's sides are those of the lowest."""
        sides = torch.tensor([height for _, height, _ in self.levels], dtype=torch.float64)
        return sides / sides[-1]

    def expand(self, values: Tensor) -> Tensor:
        """(B,) or (B, K) to (B, 1) or (B, N)."""
        if values.ndim == 1:
            return values[:, None]
        counts = torch.tensor([math.prod(level) for level in self.levels], device=values.device)
        return values.repeat_interleave(counts, dim=1, output_size=self.shape[0])

    def mean(self, x: Tensor) -> Tensor:
        return torch.stack([part.mean(1) for part in self._parts(x)], dim=1)

    def unpack(self, x: Tensor) -> list[Tensor]:
        """(B, N) to the levels' maps (B, C, H, W), the highest first."""
        return [part.unflatten(1, level) for part, level in zip(self._parts(x), self.levels, strict=True)]

    def pack(self, maps: Sequence[Tensor]) -> Tensor:
        """The levels' maps to (B, N)."""
        return torch.cat([level.flatten(1) for level in maps], dim=1)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([math.prod(level) for level in self.levels], dim=1)
