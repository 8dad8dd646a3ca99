"""Attention over tokens.

Those of a clip are (B, F, S, width), S tokens in each of F frames. Attention is joint, all to all, F² S² products; or
factorised (Latte: Ma et al., 2024, variant 1): over space within each frame, F S², and over time at each place, F² S,
in different blocks.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.nn.linear import dense
from ditkit.nn.rotary import rotate

MOST_EXPLICIT_TOKENS = 512  # beyond its square, the L × M weights of the explicit form take too much memory

Over = Literal["joint", "space", "time"]


class Arrangement(NamedTuple):
    """What blocks are told of the tokens of a sequence, of L each."""

    mask: Tensor | None = None
    """bool (B, L): those that are attended to; or (B, L, L), by each. None: all."""
    rotary: Tensor | None = None
    """Angles (2, L, d/2), or (2, B, L, d/2) where they differ from row to row (`nn/rotary.py`)."""
    rows: Tensor | None = None
    """(B, L), of tokens of several images in a row (`nn/packing.py`): which row of c is told to each."""


ANY = Arrangement()


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """softmax(scale · q kᵀ) v over q (B, H, L, d) and k, v (B, H, M, d); 1 / sqrt(d) where none is given.

    With `mask`, bool (B, M) or (B, L, M) with a true in every row, only over the M where it is true.

    Torch's fused kernel, but for training on a CPU: its backward there takes 1.5 to 4 times as long as
    the products written out (`ditkit bench`).

    In bf16 keys are taken relative to their mean, which changes no softmax. What keys have in common grows in training,
    as nothing holds it; rounded with it, the gradients of queries and keys become noise, and the network is lost within
    a thousand steps (docs/log.md).
    """
    if k.dtype != torch.float32:
        k = k - k.mean(-2, keepdim=True)
    allowed = mask
    if mask is not None:
        allowed = mask[:, None, None] if mask.ndim == 2 else mask[:, None]  # for every head (and query)
    training_on_cpu = q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad
    if training_on_cpu and q.shape[-2] * k.shape[-2] <= MOST_EXPLICIT_TOKENS**2:
        if scale != 1:
            q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
        logits = q @ k.transpose(-2, -1)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        return logits.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, allowed, scale=scale)


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
        return self.proj(attend(q, k, v, mask=at.mask).transpose(1, 2).flatten(2))


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
