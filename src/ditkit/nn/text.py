"""What a network makes of a text: tokens to attend to, and one vector beside those of time and label.

A text is what a frozen encoder gives (`ditkit.text`): in cond "text" (B, M, dim), "text_mask" (B, M), true where
there is a token, at least one in a row, and "text_pooled" (B, dim).
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.kernels.attention import Runs
from ditkit.layout import Cond
from ditkit.nn.attention import CrossAttention
from ditkit.nn.linear import dense, zero_dense
from ditkit.nn.mlps import TanhGelu
from ditkit.nn.norms import NORMS, norm
from ditkit.nn.packing import runs
from ditkit.nn.parts import Norm

TOKENS, MASK, POOLED = "text", "text_mask", "text_pooled"


class Words(NamedTuple):
    """Tokens a network attends to."""

    tokens: Tensor  # (B, M, width)
    mask: Tensor | None  # bool (B, M), whether there is one; none: everywhere
    runs: Runs | None = None  # of several texts in one sequence: where each begins

    def packed(self) -> "Words":
        """Those of all B texts, one text after another: (1, B · M, width)."""
        texts, length = self.tokens.shape[:2]
        mask = None if self.mask is None else self.mask.flatten()[None]
        return Words(self.tokens.flatten(0, 1)[None], mask, runs([length] * texts, self.tokens.device))


class TextReader(nn.Module):
    """cond -> (a text as a whole (B, width), its words), of which a network may take one only; and "unknown"."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    @abstractmethod
    def forward(self, cond: Cond) -> tuple[Tensor | None, Words | None]: ...

    @abstractmethod
    def null(self, cond: Cond) -> Cond:
        """The keys of cond that are used, with "unknown" as their values."""

    def checked(self, cond: Cond, key: str) -> Tensor:
        """InputError where it is not there or of another encoder."""
        if key not in cond:
            raise InputError(
                f"this network takes a text: cond has no {key!r}, it has {sorted(cond) or 'nothing'}"
            )
        value = cond[key]
        if key != MASK and value.shape[-1] != self.dim:
            raise InputError(
                f"cond {key!r} has {value.shape[-1]} channels, this network was built for {self.dim}: it needs the "
                "text encoder it was trained with"
            )
        return value


class TextEmbedding(TextReader):
    """An encoder's tokens, its pooled vector or both, brought to the network's width; and "unknown", learned.

    Encoders differ in scale, so what comes in is normed first.
    """

    def __init__(self, dim: int, width: int, *, tokens: bool, pooled: bool):
        super().__init__(dim)
        self.tokens = _projection(dim, width) if tokens else None
        self.pooled = _projection(dim, width) if pooled else None
        self.null_token = nn.Parameter(torch.randn(dim)) if tokens else None
        self.null_pooled = nn.Parameter(torch.randn(dim)) if pooled else None

    def forward(self, cond: Cond) -> tuple[Tensor | None, Words | None]:
        vector, words = None, None
        if self.pooled is not None:
            vector = self.pooled(norm(self.checked(cond, POOLED)))
        if self.tokens is not None:
            words = Words(self.tokens(norm(self.checked(cond, TOKENS))), self.checked(cond, MASK))
        return vector, words

    def null(self, cond: Cond) -> Cond:
        """The keys of cond that are used, with "unknown" as their values: one learned token, and a learned vector."""
        empty = {}
        if self.null_token is not None:
            tokens, mask = self.checked(cond, TOKENS), self.checked(cond, MASK)
            first = torch.arange(tokens.shape[1], device=tokens.device) == 0
            empty[TOKENS] = torch.where(first[:, None], self.null_token, 0.0).to(tokens).expand_as(tokens)
            empty[MASK] = first.expand_as(mask)
        if self.null_pooled is not None:
            pooled = self.checked(cond, POOLED)
            empty[POOLED] = self.null_pooled.to(pooled).expand_as(pooled)
        return empty


class TextAttention(nn.Module):
    """Tokens (B, L, D), or of a clip (B, F, S, D), attend to words: x + attention(norm(x), words). Starts as the identity.

    With `runs` of the tokens of several images in one sequence, each image attends to its own text.
    """

    def __init__(self, width: int, heads: int, norm: Norm = "layer"):
        super().__init__()
        self.norm = NORMS[norm]
        self.attention = CrossAttention(width, heads)
        self.attention.proj = zero_dense(width, width)

    def forward(self, x: Tensor, words: Words, runs: Runs | None = None) -> Tensor:
        return x + self.attention(self.norm(x), words.tokens, words.mask, runs, words.runs)


def _projection(dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(dense(dim, width), TanhGelu(), dense(width, width))
