"""What can be put around a network's blocks: leaving tokens out (`nn/routing.py`), keeping outputs, caches.

    def around(k, run, h, at):
        return run(h, at)

A network calls it in place of its block number k: h is what the block works on, `at` what is known of it, and `run(h, at)` is
the block, compiled where the network is. An `around` is made for one forward pass and may keep something from block to
block; those that are `composed` each see the inner ones as the block.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ditkit.errors import InputError
from ditkit.nn.attention import ANY, Arrangement, FirstValues, Over
from ditkit.nn.packing import runs
from ditkit.nn.text import Words


class Tokens(NamedTuple):
    """What is known of the tokens (B, L, D), of a clip (B, F, L, D), that a block works on; in a U-shaped network of a map or
    a grid."""

    c: Tensor
    """The conditioning: (B, D), (B, L, D) for a time per token, or what broadcasts with tokens; or a sequence."""
    among: Arrangement = ANY
    """Who attends to whom, and where they are."""
    over: Over = "joint"
    """What the block's attention is over."""
    words: Words | None = None
    """Tokens of a text that the block attends to."""
    own: int = 0
    """So many of the L tokens, the first ones, are the state's and can be left out; 0 in a network that needs all."""
    frames: int = 1
    """F."""
    per_token: bool = False
    """Whether `c` has a row for each of the L tokens."""
    lengths: Sequence[int] = ()
    """Of several images in one sequence (`nn/packing.py`): how many tokens each has."""
    further: int = 0
    """So many of these, the last ones of each image, are not the state's and cannot be left out."""

    def take(self, index: Tensor, lengths: Sequence[int] = ()) -> "Tokens":
        """The same of some tokens only, int64 (B, L'), the same ones in every frame of a clip; `lengths`: how many of each of
        several images. InputError where a network needs all."""
        if not self.own:
            raise InputError("this network needs all its tokens: only a DiT can leave some out")
        mask, rotary, rows, apart, _, first = self.among
        c = self.c
        if self.per_token:
            c = taken(c, index)
        if self.over != "time":  # along time each token has its place's, which stay the same
            places = self._sequences(index, mask, rotary)
            mask = _masked(mask, places)
            rotary = _turned(rotary, places)
        if rows is not None:
            rows, apart = rows.gather(1, index), runs(lengths, index.device)
        if first is not None:
            first = FirstValues(taken(first.there(), index))
        among = Arrangement(mask, rotary, rows, apart, first=first)  # a grid is of all tokens
        return self._replace(c=c, among=among, lengths=lengths)

    def _sequences(self, index: Tensor, mask: Tensor | None, rotary: Tensor | None) -> Tensor:
        """(B', L''): which tokens of the sequences that attend to each other `index` is."""
        if self.frames == 1:
            return index
        if self.over == "space":
            return index.repeat_interleave(self.frames, 0)
        whole = mask.shape[1] if mask is not None else 0 if rotary is None else rotary.shape[-2]
        starts = torch.arange(self.frames, device=index.device) * (whole // self.frames)
        return (index[:, None] + starts[:, None]).flatten(1)


Run: TypeAlias = Callable[[Tensor, Tokens], Tensor]
Around: TypeAlias = Callable[[int, Run, Tensor, Tokens], Tensor]


def alone(k: int, run: Run, h: Tensor, at: Tokens) -> Tensor:
    """Nothing around: the block itself."""
    return run(h, at)


def composed(*arounds: Around) -> Around:
    """Each around those that follow."""
    if not arounds:
        return alone
    outer, *others = arounds
    inner = composed(*others)
    return lambda k, run, h, at: outer(k, lambda h, at: inner(k, run, h, at), h, at)


def checkpointing(every: int) -> Around:
    """Every so many-th block, from the first on, keeps its input only and is computed again in the backward pass. Innermost where
    several are composed, so that what the others see is not made twice."""

    def around(k: int, run: Run, h: Tensor, at: Tokens) -> Tensor:
        return run(h, at) if k % every else checkpoint(run, h, at, use_reentrant=False)

    return around


def numbered_from(start: int, around: Around) -> Around:
    """For a network inside another, whose first block is number `start` of the whole."""
    return lambda k, run, h, at: around(start + k, run, h, at)


def taken(h: Tensor, index: Tensor) -> Tensor:
    """Tokens `index` (B, L') of h (B, L, D), or of a clip (B, F, L, D) the same ones in every frame."""
    return h.gather(-2, _expanded(index, h))


def put_back(h: Tensor, index: Tensor, parts: Tensor) -> Tensor:
    """h with `parts` in the places `index`, as of `taken`."""
    return h.scatter(-2, _expanded(index, parts), parts.to(h.dtype))


def _expanded(index: Tensor, h: Tensor) -> Tensor:
    index = index[..., None] if h.ndim == 3 else index[:, None, :, None]
    return index.expand(*h.shape[:-2], -1, h.shape[-1])


def _masked(mask: Tensor | None, places: Tensor) -> Tensor | None:
    """The mask, (B, L) or (B, L, L), of some tokens."""
    if mask is None:
        return None
    if mask.ndim == 2:
        return mask.gather(1, places)
    several = places[:, :, None].expand(-1, -1, mask.shape[2])
    return mask.gather(1, several).gather(2, places[:, None].expand(-1, places.shape[1], -1))


def _turned(rotary: Tensor | None, places: Tensor) -> Tensor | None:
    """The tables, (2, L, d/2) or (2, B, L, d/2), of some tokens: (2, B, L', d/2)."""
    if rotary is None:
        return None
    if rotary.ndim == 3:
        rotary = rotary[:, None].expand(-1, len(places), -1, -1)
    at = places[None, :, :, None]
    return rotary.gather(2, at.expand(2, -1, -1, rotary.shape[-1]))
