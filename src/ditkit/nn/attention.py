"""Attention over tokens.

Those of a clip are (B, F, S, width), S tokens in each of F frames. Attention is joint, all to all, F² S² products; or
factorised (Latte: Ma et al., 2024, variant 1): over space within each frame, F S², and over time at each place, F² S,
in different blocks.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.kernels.attention import Runs, attend
from ditkit.kernels.rotation import rotate
from ditkit.nn.linear import dense
from ditkit.nn.norms import HeadNorm
from ditkit.nn.parts import PLAIN, Parts

Over = Literal["joint", "space", "time"]


class FirstValues:
    """The values of a network's first block, or its first of each kind, from when it has run: as its tokens, (B, L, width) or of
    a clip (B, F, S, width)."""

    def __init__(self, values: Tensor | None = None):
        self.values = values

    def there(self) -> Tensor:
        """The values. InputError where the block has not run on all tokens."""
        if self.values is None:
            raise InputError(
                "`backbone.value_residual`: the first block has not run on all tokens; leave it and its tokens in, or give False"
            )
        return self.values


class Arrangement(NamedTuple):
    """Which tokens of a sequence attend to which, and where they are; L tokens a sequence."""

    mask: Tensor | None = None
    """bool (B, L): those that are attended to; or (B, L, L), by each. None: all."""
    rotary: Tensor | None = None
    """Angles (2, L, d/2), or (2, B, L, d/2) where they differ from row to row (`nn/rotary.py`)."""
    rows: Tensor | None = None
    """(1, L), of tokens of several images in one sequence (`nn/packing.py`): which row of c conditions each."""
    runs: Runs | None = None
    """Of such tokens: the runs that attend each to itself."""
    grid: tuple[int, ...] = ()
    """(frames, rows, columns) that the first tokens of what a block works on (B, L, D), or (B, F, S, D), fill; where it is read."""
    first: FirstValues | None = None
    """What the first block keeps for later ones, where they mix it into their own values."""


ANY = Arrangement()


def check_heads(width: int, heads: int) -> None:
    """InputError, naming heads that fit, unless they share the width evenly."""
    if width % heads:
        fitting = ", ".join(str(h) for h in range(1, 33) if width % h == 0)
        raise InputError(f"width {width} is not divisible by {heads} heads; use one of {fitting}")


class SelfAttention(nn.Module):
    """Multi-head self-attention: (B, L, width) -> (B, L, width), all tokens to all; of a clip (B, F, S, width) ->
    (B, F, S, width), all to all, within each frame or along time at each place, as `over` says.

    One projection gives queries, keys and values, in that order, each head-major. `parts` says whether queries and keys are
    normed, before they are turned, and whether the values are mixed with the first block's: λ1 v + λ2 v_first, both learned
    and 1/2 at first (Zhou et al., "Value Residual Learning", 2024).
    """

    def __init__(self, width: int, heads: int, over: Over = "joint", parts: Parts = PLAIN):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.over, self.values = heads, over, parts.values
        self.qkv = dense(width, 3 * width)
        self.proj = dense(width, width)
        self.q_norm = HeadNorm(width // heads) if parts.qk_norm else None
        self.k_norm = HeadNorm(width // heads) if parts.qk_norm else None
        self.mix = nn.Parameter(torch.full((2,), 0.5)) if parts.values == "mixed" else None

    def forward(self, x: Tensor, at: Arrangement = ANY) -> Tensor:
        """`at` is of the sequences that attend: in a clip all tokens, those of a frame, or those of a place. Norms and angles
        are float32, under autocast too."""
        q, k, v = self.qkv(self._sequences(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, L, H, d)
        v = self._mixed(v, x.shape, at.first)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if at.rotary is not None:
            q, k = rotate(q, at.rotary), rotate(k, at.rotary)
        q, k, v = (part.to(v.dtype).transpose(1, 2) for part in (q, k, v))
        out = self.proj(attend(q, k, v, mask=at.mask, runs=at.runs).transpose(1, 2).flatten(2))
        return self._back(out, x.shape)

    def _mixed(self, v: Tensor, shape: torch.Size, first: FirstValues | None) -> Tensor:
        """The values (B, L, H, d) that attention has, of tokens of that shape."""
        if self.values == "first" and first is not None:
            first.values = self._back(v.flatten(2), shape)
        if self.mix is None or first is None:
            return v
        return self.mix[0] * v + self.mix[1] * self._sequences(first.there()).unflatten(-1, (self.heads, -1))

    def _sequences(self, x: Tensor) -> Tensor:
        """Tokens as the sequences that attend each to itself, (B', L', width)."""
        if x.ndim == 3:
            return x
        return (
            x.flatten(1, 2)
            if self.over == "joint"
            else (x.transpose(1, 2) if self.over == "time" else x).flatten(0, 1)
        )

    def _back(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Sequences as tokens of that shape."""
        if len(shape) == 3:
            return x
        if self.over == "time":
            return x.view(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)
        return x.view(shape)


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to another sequence, of any length M (Vaswani et al., 2017, 3.2.3).

    (B, L, width) and (B, M, width) -> (B, L, width); a clip's tokens (B, F, S, width) likewise. Tokens of several images in one
    sequence (1, L, width) attend to another, (1, M, width), run by run.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.q = dense(width, width)
        self.kv = dense(width, 2 * width)
        self.proj = dense(width, width)

    def forward(
        self,
        x: Tensor,
        sequence: Tensor,
        mask: Tensor | None = None,
        runs: Runs | None = None,
        keys: Runs | None = None,
    ) -> Tensor:
        """`mask`, bool (B, M): the parts of the sequence that are attended to. Each of the `runs` of tokens attends to the run of
        the sequence with its number, of those in `keys`."""
        q = self.q(x.flatten(1, -2)).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, L, d)
        k, v = self.kv(sequence).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, M, d)
        return self.proj(attend(q, k, v, mask=mask, runs=runs, keys=keys).transpose(1, 2).flatten(2)).view(
            x.shape
        )
