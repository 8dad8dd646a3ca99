"""Several images in one row of tokens, each attending to its own only (NaViT: Dehghani et al., "Patch n' Pack",
2023). Rows are as long as the longest, and padded; which images share one is the data's affair.
"""

from collections.abc import Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ditkit.device import sent
from ditkit.errors import InputError

Rows = Sequence[Sequence[int]]


def stacks(parts: Sequence[Tensor]) -> list[Tensor]:
    """Those of equal shape that follow each other as one tensor, (n, ...): what is done to them is done at once."""
    return [torch.stack(list(run)) for _, run in groupby(parts, key=lambda part: part.shape)]


def check_rows(rows: Rows, images: int) -> None:
    """InputError unless every image is in one row, once, and no row is empty."""
    if sorted(k for row in rows for k in row) != list(range(images)) or not all(rows):
        raise InputError(
            f"rows {[list(row) for row in rows]} of {images} images: give each image, 0 to {images - 1}, one place in "
            "one row, and leave out rows without any"
        )


def packed_rows(parts: Sequence[Tensor], rows: Rows, padding: float = 0) -> Tensor:
    """What each image has, (L_i, ...), in rows (R, L, ...), one image after another."""
    return pad_sequence([torch.cat([parts[k] for k in row]) for row in rows], True, padding)


def owners(lengths: Sequence[int], rows: Rows, device: torch.device) -> Tensor:
    """Whose each token is: (R, L), -1 where there is none."""
    found = packed_rows([torch.full((n,), k, device="cpu") for k, n in enumerate(lengths)], rows, -1)
    return sent(found, device)


def same_image(owner: Tensor) -> Tensor:
    """Who attends to whom, bool (R, L, L). Padding attends to padding, so that every token has something to."""
    return owner[:, :, None] == owner[:, None]


def runs(lengths: Sequence[int], rows: Rows, device: torch.device) -> Tensor:
    """The same of tokens of all rows, one row after another: where each image, or the padding of a row, begins, and where the
    last ends; int32 (N + 1,)."""
    own = [[lengths[k] for k in row] for row in rows]
    longest = max(map(sum, own))
    parts = [part for row in own for part in (*row, longest - sum(row)) if part]
    return sent(torch.tensor([0, *accumulate(parts)], dtype=torch.int32, device="cpu"), device)


def unpacked(x: Tensor, lengths: Sequence[int], rows: Rows) -> list[Tensor]:
    """Back: (R, L, ...) to what each image has, (L_i, ...), in the images' order."""
    found: dict[int, Tensor] = {}
    for line, row in zip(x, rows, strict=True):
        own = [lengths[k] for k in row]
        found.update(zip(row, line[: sum(own)].split(own), strict=True))
    return [found[k] for k in range(len(lengths))]
