"""Attention over tokens.

Those of a clip are (B, F, S, width), S tokens in each of F frames. Attention is joint, all to all, F² S² products; or
factorised (Latte: Ma et al., 2024, variant 1): over space within each frame, F S², and over time at each place, F² S,
in different blocks.
"""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.kernels.attention import Runs, attend
from ditkit.kernels.rotation import rotate
from ditkit.nn.linear import dense

Over = Literal["joint", "space", "time"]


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


ANY = Arrangement()


def check_heads(width: int, heads: int) -> None:
    """InputError, naming heads that fit, unless they share the width evenly."""
    if width % heads:
        fitting = ", ".join(str(h) for h in range(1, 33) if width % h == 0)
        raise InputError(f"width {width} is not divisible by {heads} heads; use one of {fitting}")


class SelfAttention(nn.Module):
    """Multi-head self-attention: (B, L, width) -> (B, L, width), all tokens to all; of a clip (B, F, S, width) ->
    (B, F, S, width), all to all, within each frame or along time at each place, as `over` says.

    One projection gives queries, keys and values, in that order, each head-major.
    """

    def __init__(self, width: int, heads: int, over: Over = "joint"):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.over = heads, over
        self.qkv = dense(width, 3 * width)
        self.proj = dense(width, width)

    def forward(self, x: Tensor, at: Arrangement = ANY) -> Tensor:
        """`at` is of the sequences that attend: in a clip all tokens, those of a frame, or those of a place."""
        if x.ndim == 3:
            return self.sequences(x, at)
        if self.over == "joint":
            return self.sequences(x.flatten(1, 2), at).view(x.shape)
        if self.over == "space":
            return self.sequences(x.flatten(0, 1), at).view(x.shape)
        along = x.transpose(1, 2)  # (B, S, F, D)
        return self.sequences(along.flatten(0, 1), at).view(along.shape).transpose(1, 2)

    def sequences(self, x: Tensor, at: Arrangement) -> Tensor:
        """(B, L, width) -> (B, L, width). Angles are float32, under autocast too."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, L, H, d)
        if at.rotary is not None:
            q, k = rotate(q, at.rotary).to(v.dtype), rotate(k, at.rotary).to(v.dtype)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return self.proj(attend(q, k, v, mask=at.mask, runs=at.runs).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to another sequence, of any length M (Vaswani et al., 2017, 3.2.3).

    (B, L, width) and (B, M, width) -> (B, L, width); a clip's tokens (B, F, S, width) likewise.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.q = dense(width, width)
        self.kv = dense(width, 2 * width)
        self.proj = dense(width, width)

    def forward(self, x: Tensor, sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask`, bool (B, M): the parts of the sequence that are attended to."""
        q = self.q(x.flatten(1, -2)).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, L, d)
        k, v = self.kv(sequence).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, M, d)
        return self.proj(attend(q, k, v, mask=mask).transpose(1, 2).flatten(2)).view(x.shape)
