"""TREAD (Krause et al., "TREAD: Token Routing for Efficient Architecture-agnostic Diffusion Training", 2025).

Some blocks work on a part of each image's tokens; the others come back as they were after the last of these blocks. A
step costs less, and more is learned in each; sampling has all tokens.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ditkit.device import sent
from ditkit.errors import InputError
from ditkit.nn.around import Around, Run, Tokens, put_back, taken


def tread(
    draws: Tensor | Sequence[Tensor],
    blocks: int,
    *,
    rate: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    first: Annotated[int, Field(ge=0)] = 2,
    last: Annotated[int, Field(ge=-1)] = -1,
) -> Around:
    """Blocks number `first` to `last`, that one among them (-1: four from the end), leave a `rate` of the tokens out.

    `draws`, uniform in [0, 1), (B, at least L): the tokens with the smallest ones stay. Of clips the same tokens of every
    frame; of several images in one sequence a list, (at least L_i) each. A text's tokens stay. Made for one forward pass.
    InputError where there are no such blocks.
    """
    end = max(blocks - 4, first) if last == -1 else last
    if not first <= end < blocks:
        raise InputError(
            f"train.routing tread: first {first} and last {end} of {blocks} blocks, 0 to {blocks - 1}; give others"
        )
    left: list[tuple[Tensor, Sequence[int]]] = []

    def around(k: int, run: Run, h: Tensor, at: Tokens) -> Tensor:
        if not first <= k <= end:
            return run(h, at)
        if k == first:
            places, lengths = kept(draws, rate, h.shape[-2], at)
            left[:] = [(sent(places, h.device), lengths)]
        ((index, lengths),) = left
        return put_back(h, index, run(taken(h, index), at.take(index, lengths)))

    return around


def kept(
    draws: Tensor | Sequence[Tensor], rate: float, count: int, at: Tokens
) -> tuple[Tensor, Sequence[int]]:
    """Which of `count` tokens stay, in their order: int64 (B, L'); and of several images in one sequence how many of each."""
    if at.lengths:
        counts = [length - at.further for length in at.lengths]
        others = torch.arange(at.further)
        some = [
            torch.cat([_smallest(row[:n], rate), n + others]) for row, n in zip(draws, counts, strict=True)
        ]
        starts = accumulate(at.lengths, initial=0)
        places = torch.cat([own + start for own, start in zip(some, starts, strict=False)])
        return places[None], [len(own) for own in some]
    assert isinstance(draws, Tensor)
    own_tokens = _smallest(draws[:, : at.own], rate)
    others = torch.arange(at.own, count).expand(len(draws), -1)
    return torch.cat([own_tokens, others], dim=1), ()


def _smallest(draws: Tensor, rate: float) -> Tensor:
    """The places of the smallest draws along the last axis, ascending; at least one."""
    count = draws.shape[-1]
    return draws.topk(max(1, count - int(rate * count)), largest=False).indices.sort(-1).values
