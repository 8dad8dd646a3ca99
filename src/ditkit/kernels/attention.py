"""Attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

MOST_EXPLICIT_TOKENS = 512  # beyond its square, the L × M weights of the explicit form take too much memory

HALVES = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256  # of flash attention

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


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    mask: Tensor | None = None,
    runs: Tensor | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ) v over q (B, H, L, d) and k, v (B, H, M, d); 1 / sqrt(d) where none is given.

    With `mask`, bool (B, M) or (B, L, M) with a true in every row, only over the M where it is true. `runs`, int32 (N + 1,),
    says the same of N runs of tokens that attend each to itself: where each begins in all rows, one after another, and
    where the last ends. On a GPU that `reads_runs`, in bf16, they are read and the mask is not.

    Torch's fused kernel, but for training on a CPU: its backward there takes 1.5 to 4 times as long as
    the products written out (`ditkit bench`).

    In bf16 keys are taken relative to their mean, which changes no softmax. What keys have in common grows in training,
    as nothing holds it; rounded with it, the gradients of queries and keys become noise, and the network is lost within
    a thousand steps (docs/log.md).
    """
    if k.dtype != torch.float32:
        k = k - k.mean(-2, keepdim=True)
    if runs is not None and q.dtype in HALVES and q.shape[-1] % 8 == 0 and q.shape[-1] <= WIDEST_HEAD:
        return _in_runs(q, k, v, scale, runs)
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


def reads_runs(device: torch.device) -> bool:
    """Whether attention there has a kernel that reads runs: flash attention, from Ampere on."""
    return (
        device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _in_runs(q: Tensor, k: Tensor, v: Tensor, scale: float | None, runs: Tensor) -> Tensor:
    rows, length = q.shape[0], q.shape[2]
    q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in (q, k, v))  # (B·L, H, d)
    # A whole row as the longest run costs nothing, and is the same number in every step.
    out = cast(Tensor, varlen_attn(q, k, v, runs, runs, length, length, scale=scale))
    return out.unflatten(0, (rows, length)).transpose(1, 2)


def _is_written_out(q: Tensor, k: Tensor) -> bool:
    if _form != "auto":
        return _form == "written"
    training_on_cpu = q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad
    return training_on_cpu and q.shape[-2] * k.shape[-2] <= MOST_EXPLICIT_TOKENS**2
