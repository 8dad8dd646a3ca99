"""Transformer blocks, one for each way of conditioning (DiT paper, section 3.2).

A block maps tokens, (B, L, D) or of a clip (B, F, S, D), and their condition c, made of time and label, to tokens; an
`Arrangement` says which tokens attend to which, and where they are. A `Conditioning` chooses the block, how c is made,
the last layer that goes with it, and whether c passes through the blocks as further tokens; each has a line in
`ditkit.nn.registries.CONDITIONINGS`. What else a block is made of, its norms and MLP among it, `Parts` says.

The paper's counts leave open whether the norms of the two that are not adaptive have parameters, and
whether cross-attention has a norm of its own. Here no norm has parameters, so that the four differ by their
conditioning and nothing else, and every branch begins with one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.kernels.pointwise import take_rows
from ditkit.nn.attention import ANY, Arrangement, CrossAttention, Over, SelfAttention
from ditkit.nn.linear import zero_dense
from ditkit.nn.mlps import MLPS
from ditkit.nn.norms import NORMS, norm
from ditkit.nn.parts import PLAIN, Norm, Parts


class Modulation(nn.Module):
    """The condition's `n` vectors per token: (B, D) -> n of (B, 1, D), or what broadcasts with tokens as it is.

    With `rows` (1, L), of tokens of several images: (N, D) -> n of (1, L, D), made once an image.
    """

    def __init__(self, width: int, n: int):
        super().__init__()
        self.n = n
        self.linear = zero_dense(width, n * width)

    def forward(self, c: Tensor, rows: Tensor | None = None) -> tuple[Tensor, ...]:
        if c.ndim == 2 and rows is None:
            c = c[:, None]
        vectors = self.linear(F.silu(c))
        if rows is not None:
            vectors = take_rows(vectors, rows)
        return vectors.chunk(self.n, dim=-1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x · (1 + scale) + shift."""
    return x * (1 + scale) + shift


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) · (1 + scale) + shift."""
    return modulated(norm(x), shift, scale)


class Block(nn.Module):
    """A ViT's block, pre-norm: self-attention, then the MLP. It reads nothing but its tokens."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, over: Over = "joint", parts: Parts = PLAIN):
        super().__init__()
        self.norm = NORMS[parts.norm]
        self.attention = SelfAttention(width, heads, over, parts)
        self.mlp = MLPS[parts.mlp](width, mlp_ratio)

    def forward(self, x: Tensor, c: Tensor, at: Arrangement = ANY) -> Tensor:
        x = x + self.attention(self.norm(x), at)
        return x + self.mlp(self.norm(x), at)


class CrossAttentionBlock(Block):
    """Between the two, attention to the condition, a sequence (B, M, D) of any length."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, over: Over = "joint", parts: Parts = PLAIN):
        super().__init__(width, heads, mlp_ratio, over, parts)
        self.cross = CrossAttention(width, heads)

    def forward(self, x: Tensor, c: Tensor, at: Arrangement = ANY) -> Tensor:
        x = x + self.attention(self.norm(x), at)
        x = x + self.cross(self.norm(x), c)
        return x + self.mlp(self.norm(x), at)


class AdaLNBlock(Block):
    """The condition sets shift and scale of both norms; at the start they are plain norms."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, over: Over = "joint", parts: Parts = PLAIN):
        super().__init__(width, heads, mlp_ratio, over, parts)
        self.modulation = Modulation(width, 4)

    def forward(self, x: Tensor, c: Tensor, at: Arrangement = ANY) -> Tensor:
        shift1, scale1, shift2, scale2 = self.modulation(c, at.rows)
        x = x + self.attention(modulated(self.norm(x), shift1, scale1), at)
        return x + self.mlp(modulated(self.norm(x), shift2, scale2), at)


class AdaLNZeroBlock(Block):
    """The condition sets shift, scale and gate of both halves; all start at zero.

    With zero gates every block starts as the identity (DiT paper, figure 3).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, over: Over = "joint", parts: Parts = PLAIN):
        super().__init__(width, heads, mlp_ratio, over, parts)
        self.modulation = Modulation(width, 6)

    def forward(self, x: Tensor, c: Tensor, at: Arrangement = ANY) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c, at.rows)
        x = x + gate1 * self.attention(modulated(self.norm(x), shift1, scale1), at)
        return x + gate2 * self.mlp(modulated(self.norm(x), shift2, scale2), at)


class Head(nn.Module):
    """The last layer of a network that is not adaptive: norm, then a linear map that starts at 0."""

    def __init__(self, width: int, features: int, norm: Norm = "layer"):
        super().__init__()
        self.norm = NORMS[norm]
        self.linear = zero_dense(width, features)

    def forward(self, x: Tensor, c: Tensor, at: Arrangement = ANY) -> Tensor:
        return self.linear(self.norm(x))


class AdaLNHead(nn.Module):
    """The last layer of the adaptive-norm networks: modulated norm, then a linear map that starts at 0."""

    def __init__(self, width: int, features: int, norm: Norm = "layer"):
        super().__init__()
        self.norm = NORMS[norm]
        self.modulation = Modulation(width, 2)
        self.linear = zero_dense(width, features)

    def forward(self, x: Tensor, c: Tensor, at: Arrangement = ANY) -> Tensor:
        shift, scale = self.modulation(c, at.rows)
        return self.linear(modulated(self.norm(x), shift, scale))


def summed(time: Tensor, *others: Tensor) -> Tensor:
    """Time (B, D), or (B, L, D) for a time per token or frame, plus what else there is, each (B, D): of the time's
    shape."""
    for other in others:
        time = time + (other if time.ndim == 2 else other[:, None])
    return time


def in_sequence(time: Tensor, *others: Tensor) -> Tensor:
    """Time (B, D), then what else there is, each (B, D): (B, N, D). InputError for a time per token or frame."""
    if time.ndim != 2:
        raise InputError(
            "a time per token or frame needs adaptive norms; give one time per image or `backbone.conditioning` "
            "adaln_zero"
        )
    return torch.stack([time, *(other.expand_as(time) for other in others)], dim=1)


class Conditioning:
    """A way of conditioning: which blocks and last layer, how c is put together, and whether it becomes tokens."""

    block: type[Block]
    head: type[Head] | type[AdaLNHead]
    sequence: bool = False
    """Whether c is a sequence."""
    passes: bool = False
    """Whether c, a sequence, passes through the blocks: further tokens, last and without position, dropped before
    the head."""

    @staticmethod
    def combined(time: Tensor, *others: Tensor) -> Tensor:
        """c, from the embedded time, (B, D) or per token or frame (B, L, D), and other embeddings, each (B, D)."""
        return summed(time, *others)


class AdaLNZero(Conditioning):
    """Adaptive norms and gates in every block, which starts as the identity: DiT's choice."""

    block, head = AdaLNZeroBlock, AdaLNHead


class AdaLN(Conditioning):
    """Adaptive norms in every block, no gates."""

    block, head = AdaLNBlock, AdaLNHead


class CrossAttended(Conditioning):
    """Every block attends to the sequence of time and label."""

    block, head, combined, sequence = CrossAttentionBlock, Head, staticmethod(in_sequence), True


class InContext(Conditioning):
    """Time and label are two more tokens, last and without position, dropped before the head."""

    block, head, combined, sequence, passes = Block, Head, staticmethod(in_sequence), True, True
