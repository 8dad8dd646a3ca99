"""Attention over tokens."""

import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.nn.linear import dense


class SelfAttention(nn.Module):
    """Multi-head self-attention, all tokens to all tokens: (B, L, width) -> (B, L, width).

    One projection gives queries, keys and values, in that order, each head-major.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            fitting = ", ".join(str(h) for h in range(1, 33) if width % h == 0)
            raise InputError(f"width {width} is not divisible by {heads} heads; use one of {fitting}")
        self.heads = heads
        self.qkv = dense(width, 3 * width)
        self.proj = dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, d)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
