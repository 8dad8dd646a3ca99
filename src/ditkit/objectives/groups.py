"""Images that a term compares with each other: those of a group, which are in one pass of one process.

Groups of so many images follow each other in the batch of all processes, so they depend on neither micro-batches nor the number of
processes; the last one of a batch may be smaller.
"""

import torch
from torch import Tensor


def partners(places: Tensor) -> tuple[Tensor, Tensor]:
    """Of images at these places (B,) of the whole batch the other one of each pair: its row, int64 (B,), and whether it is
    there, bool (B,); where it is not, the row is another's."""
    match = (places ^ 1)[:, None] == places
    return match.long().argmax(1), match.any(1)


def same_group(places: Tensor, size: int) -> Tensor:
    """Which images at these places (B,) are in one group of that size: bool (B, B)."""
    group = torch.div(places, size, rounding_mode="floor")
    return group[:, None] == group
