"""Sparse blocks between dense ones (Park et al., "SPRINT: Sparse-Dense Residual Fusion for Efficient Diffusion Transformers",
2025).

The first and the last blocks of a network are dense: they work on all tokens. Those between them are sparse: in training they
work on some tokens of each image, and a mask token stands in for what they would give of the others. The last blocks work on a
linear map of both, what the first blocks give and what the sparse ones give. In sampling the sparse blocks work on all tokens,
or on none (path-drop guidance), which training prepares for in some of the images.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.device import sent
from ditkit.nn.around import Tokens, put_back, taken
from ditkit.nn.linear import dense

PATH_DROP = 0.1
"""The share of the images of a training whose sparse blocks give nothing."""


class LeftOut(NamedTuple):
    """What the sparse blocks of a forward pass leave out; by default nothing."""

    tokens: Tensor | None = None
    """Uniform in [0, 1), (B, at least L): of each 2 × 2 tokens those with the smallest numbers stay."""
    images: Tensor | None = None
    """bool (B,): the images for which the mask token stands in everywhere."""
    path: bool = False
    """The mask token stands in everywhere for all images, and no sparse block is run."""


NOTHING, PATH = LeftOut(), LeftOut(path=True)


class SparsePath(nn.Module):
    """The sparse blocks and what puts their tokens together with those of the blocks before them, (B, L, D) -> (B, L, D), or of
    a clip (B, F, L, D).

    Differs: the mask token is learned, from N(0, 0.02²) on; in the paper it stays as drawn.
    """

    def __init__(self, width: int, share: float):
        """`share`: of the tokens, 0, 1/4, 1/2 or 3/4, is left out in training."""
        super().__init__()
        self.share = share
        self.mask = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.mask, std=0.02)
        self.fusion = dense(2 * width, width)

    def forward(
        self,
        h: Tensor,
        turns: Sequence[Tokens],
        grid: Sequence[int],
        left: LeftOut,
        blocks: Callable[[Tensor, Sequence[Tokens]], Tensor],
    ) -> Tensor:
        """`turns` is what is known of the tokens h, in turn, `grid` (rows, columns) what an image's or a frame's own tokens fill,
        and `blocks` are the sparse blocks. Of a clip the same tokens of every frame stay, or of all frames in one sequence some of
        each; tokens without a place stay."""
        mask = self.mask.to(h.dtype).expand_as(h)
        if left.path:
            return self._fused(h, mask)
        if left.tokens is None or not self.share:
            found = blocks(h, turns)
        else:
            own, count = turns[0].own, h.shape[-2]
            places = kept(left.tokens[:, :own], grid, self.share)
            others = torch.arange(own, count).expand(len(h), -1)
            index = sent(torch.cat([places, others], dim=1), h.device)
            some = blocks(taken(h, index), [at.take(index) for at in turns])
            found = put_back(mask, index, some)
        if left.images is not None:
            rows = sent(left.images, h.device).view(-1, *[1] * (h.ndim - 1))
            found = torch.where(rows, mask, found)
        return self._fused(h, found)

    def _fused(self, h: Tensor, found: Tensor) -> Tensor:
        # As where blocks are summed: under autocast, too, the result is float32.
        return self.fusion(torch.cat([h, found.to(h.dtype)], dim=-1)).to(h.dtype)


def kept(draws: Tensor, grid: Sequence[int], share: float) -> Tensor:
    """The places of the tokens that stay, int64 (B, L'), ascending: of each 2 × 2 tokens those with the smallest draws, at least
    one. `draws` are (B, F · rows · columns), of F grids in each row; what is over at the edge of an odd grid is a smaller square.
    """
    rows, columns = grid
    draws = draws.unflatten(1, (-1, rows, columns))
    edge = (0, columns % 2, 0, rows % 2)
    squares = F.pad(draws, edge, value=math.inf).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4)
    numbers = squares.flatten(4)  # (B, F, rows / 2, columns / 2, 4)
    rank = numbers.argsort(dim=-1, stable=True).argsort(dim=-1)
    most = (numbers.isfinite().sum(-1, keepdim=True) * (1 - share)).ceil()
    stays = (rank < most).view(squares.shape).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    stays = stays[:, :, :rows, :columns].flatten(1)
    sizes = [min(2, rows - r) * min(2, columns - c) for r in range(0, rows, 2) for c in range(0, columns, 2)]
    count = draws.shape[1] * sum(math.ceil(size * (1 - share)) for size in sizes)
    return stays.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
