"""Attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_EXPLICIT_TOKENS = 512  # beyond its square, the L × M weights of the explicit form take too much memory

Form = Literal["auto", "written", "fused"]
_form: Form = "auto"


@contextmanager
def attention_as(form: Form) -> Iterator[None]:
    """Within it every attention is written out as products, or left to torch's fused kernel; auto: as `attend` chooses.
    For counting what each costs (`ditkit plan`)."""
    global _form
    before, _form = _form, form
    try:
        yield
    finally:
        _form = before


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
    if _is_written_out(q, k):
        if scale != 1:
            q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
        logits = q @ k.transpose(-2, -1)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        return logits.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, allowed, scale=scale)


def _is_written_out(q: Tensor, k: Tensor) -> bool:
    if _form != "auto":
        return _form == "written"
    training_on_cpu = q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad
    return training_on_cpu and q.shape[-2] * k.shape[-2] <= MOST_EXPLICIT_TOKENS**2
