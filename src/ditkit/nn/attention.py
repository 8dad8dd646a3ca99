"""Attention over tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.nn.linear import dense

MOST_EXPLICIT_TOKENS = 512  # beyond its square, the L × M weights of the explicit form take too much memory


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """softmax(scale · q kᵀ) v over q (B, H, L, d) and k, v (B, H, M, d); 1 / sqrt(d) where none is given.

    With `mask`, bool (B, M) with a true in every row, only over the M where it is true.

    Torch's fused kernel, but for training on a CPU: its backward there takes 1.5 to 4 times as long as
    the products written out (`ditkit bench`).
    """
    allowed = None if mask is None else mask[:, None, None]  # for every head and query
    training_on_cpu = q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad
    if training_on_cpu and q.shape[-2] * k.shape[-2] <= MOST_EXPLICIT_TOKENS**2:
        if scale != 1:
            q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
        logits = q @ k.transpose(-2, -1)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        return logits.softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, allowed, scale=scale)


def check_heads(width: int, heads: int) -> None:
    """InputError, naming heads that fit, unless they share the width evenly."""
    if width % heads:
        fitting = ", ".join(str(h) for h in range(1, 33) if width % h == 0)
        raise InputError(f"width {width} is not divisible by {heads} heads; use one of {fitting}")


class SelfAttention(nn.Module):
    """Multi-head self-attention, all tokens to all tokens: (B, L, width) -> (B, L, width).

    One projection gives queries, keys and values, in that order, each head-major.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.qkv = dense(width, 3 * width)
        self.proj = dense(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask`, bool (B, L): the tokens that are attended to."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, d)
        return self.proj(attend(q, k, v, mask=mask).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to another sequence, of any length M (Vaswani et al., 2017, 3.2.3).

    (B, L, width) and (B, M, width) -> (B, L, width).
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
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, L, d)
        k, v = self.kv(sequence).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, M, d)
        return self.proj(attend(q, k, v, mask=mask).transpose(1, 2).flatten(2))
