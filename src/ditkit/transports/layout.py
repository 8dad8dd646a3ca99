"""How a state is made of parts, so that everything else can treat it element by element."""

from dataclasses import dataclass

from torch import Tensor


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
