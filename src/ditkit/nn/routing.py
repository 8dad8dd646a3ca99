"""Leaving tokens out in training: some blocks work on a part of each image's tokens, the others pass them by.

TREAD (Krause et al., 2025): the tokens left out by one block come back, as they were, after a later one. A step costs
less, and the network learns faster; sampling has all tokens.
"""

import torch
from torch import Tensor

from ditkit.nn.around import Around, Run, Tokens, put_back, taken
from ditkit.nn.packing import packed_rows


def routed(draws: Tensor, rate: float, first: int, last: int) -> Around:
    """Blocks number `first` to `last`, that one among them, work on 1 - rate of the tokens of each image.

    `draws`, uniform in [0, 1), (B, at least L): the tokens with the smallest ones stay. Of clips the same tokens of every
    frame; of images that share rows of tokens as many of each, draws (N, at least the longest). A text's tokens stay.
    Made for one forward pass.
    """
    whole: list[Tensor] = []
    index: list[Tensor] = []

    def around(k: int, run: Run, h: Tensor, at: Tokens) -> Tensor:
        if not first <= k <= last:
            return run(h, at)
        if k == first:
            whole[:], index[:] = [h], [kept(draws, rate, h.shape[-2], at).to(h.device)]
            h = taken(h, index[0])
        h = run(h, at.take(index[0]))
        return put_back(whole[0], index[0], h) if k == last else h

    return around


def kept(draws: Tensor, rate: float, count: int, at: Tokens) -> Tensor:
    """Which of `count` tokens stay, in their order: int64 (B, L'), -1 for none where rows have fewer than others."""
    if at.rows:
        own = [_smallest(row[:n], rate) for row, n in zip(draws, at.lengths, strict=True)]
        places = [0] * len(own)
        for row in at.rows:
            start = 0
            for k in row:
                places[k], start = start, start + at.lengths[k]
        return packed_rows([some + place for some, place in zip(own, places, strict=True)], at.rows, -1)
    own_tokens = _smallest(draws[:, : at.own], rate)
    others = torch.arange(at.own, count, device=draws.device).expand(len(draws), -1)
    return torch.cat([own_tokens, others], dim=1)


def _smallest(draws: Tensor, rate: float) -> Tensor:
    """The places of the smallest draws along the last axis, ascending."""
    count = draws.shape[-1]
    return draws.topk(count - int(rate * count), largest=False).indices.sort(-1).values
