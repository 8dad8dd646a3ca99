"""Attention."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

MOST_EXPLICIT_TOKENS = 512  # beyond its square, the L × M weights of the explicit form take too much memory

HALVES = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256  # of flash attention

Form = Literal["auto", "written", "fused"]
_form: Form = "auto"


class Runs(NamedTuple):
    """Where runs of tokens, one after another, begin, and where the last ends: int32 (N + 1,)."""

    starts: Tensor
    """On the CPU."""
    there: Tensor
    """The same on the tokens' device."""


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
    runs: Runs | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ) v over q (B, H, L, d) and k, v (B, H, M, d); 1 / sqrt(d) where none is given.

    With `mask`, bool (B, M) or (B, L, M) with a true in every row, only over the M where it is true. With `runs`, of one
    sequence (B = 1, L = M), every run of tokens attends to itself only.

    Torch's fused kernel, but for training on a CPU: its backward there takes 1.5 to 4 times as long as
    the products written out (`ditkit bench`).

    In bf16 keys are taken relative to their mean, which changes no softmax. What keys have in common grows in training,
    as nothing holds it; rounded with it, the gradients of queries and keys become noise, and the network is lost within
    a thousand steps (docs/log.md).
    """
    if runs is not None and not _reads_runs(q):
        # Compiled, as one operator, or every mixture of lengths would be compiled anew.
        by_run = in_runs if torch.compiler.is_compiling() else _run_by_run
        return by_run(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, runs.starts)
    if k.dtype != torch.float32:
        k = k - k.mean(-2, keepdim=True)
    if runs is not None:
        return _in_runs(q, k, v, scale, runs.there)
    allowed = mask
    if mask is not None:
        allowed = mask[:, None, None] if mask.ndim == 2 else mask[:, None]  # for every head (and query)
    if _is_written_out(q, k):
        if scale != 1:
            q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
        logits = q @ k.transpose(-2, -1)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        return _softmax(logits).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, allowed, scale=scale)


def reads_runs(device: torch.device) -> bool:
    """Whether attention there has a kernel that reads runs: flash attention, from Ampere on."""
    return (
        device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _reads_runs(q: Tensor) -> bool:
    return q.dtype in HALVES and q.shape[-1] % 8 == 0 and q.shape[-1] <= WIDEST_HEAD and reads_runs(q.device)


def _in_runs(q: Tensor, k: Tensor, v: Tensor, scale: float | None, runs: Tensor) -> Tensor:
    length = q.shape[2]
    q, k, v = (part[0].transpose(0, 1) for part in (q, k, v))  # (L, H, d)
    # The whole sequence as the longest run costs nothing, and its length is at hand.
    out = cast(Tensor, varlen_attn(q, k, v, runs, runs, length, length, scale=scale))
    return out.transpose(0, 1)[None]


def _run_by_run(q: Tensor, k: Tensor, v: Tensor, scale: float, starts: Tensor) -> Tensor:
    """Of one sequence (1, H, L, d); runs of equal length that follow each other at once."""
    return _joined(attend(own[0], own[1], own[2], scale) for own in _alike(starts, q, k, v))


def _alike(starts: Tensor, *parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors (1, H, L, d) as those of n runs of L' tokens each: (n, H, L', d)."""
    lengths = [(length, sum(1 for _ in some)) for length, some in groupby(starts.diff().tolist())]
    counts = [length * count for length, count in lengths]
    for (length, _), *own in zip(lengths, *(part[0].split(counts, dim=1) for part in parts), strict=True):
        yield tuple(part.unflatten(1, (-1, length)).transpose(0, 1) for part in own)


def _joined(parts: Iterable[Tensor]) -> Tensor:
    """The way back; in memory the heads of a token stand together, as they are read."""
    return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts]).transpose(0, 1)[None]


@torch.library.custom_op("ditkit::attend_in_runs", mutates_args=())
def in_runs(q: Tensor, k: Tensor, v: Tensor, scale: float, starts: Tensor) -> Tensor:
    """`_run_by_run` for the compiler."""
    return _run_by_run(q, k, v, scale, starts)


@torch.library.custom_op("ditkit::attend_in_runs_backward", mutates_args=())
def _in_runs_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """With P = softmax(S), S = scale q kᵀ, of each run: dv = Pᵀ g, dS = P ∘ (dP - rowsum(P ∘ dP)), dP = g vᵀ."""
    found = []
    for dout, query, key, value in _alike(starts, g, q, k, v):
        if key.dtype != torch.float32:
            key = key - key.mean(-2, keepdim=True)
        p = _softmax(scale * query @ key.mT)
        dp = dout @ value.mT
        ds = (scale * p * (dp - (p * dp).sum(-1, keepdim=True))).to(key.dtype)
        found.append((ds @ key, ds.mT @ query, p.to(key.dtype).mT @ dout))
    dq, dk, dv = (_joined(parts) for parts in zip(*found, strict=True))
    return dq, dk, dv


def _like(q: Tensor) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    q, k, v, ctx.scale, starts = inputs
    ctx.save_for_backward(q, k, v, starts)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, starts = ctx.saved_tensors
    return *_in_runs_backward(gradient, q, k, v, ctx.scale, starts), None, None


in_runs.register_fake(lambda q, k, v, scale, starts: _like(q))
in_runs.register_autograd(_backward, setup_context=_keep)
_in_runs_backward.register_fake(lambda g, q, k, v, scale, starts: (_like(q), _like(k), _like(v)))


def _softmax(logits: Tensor) -> Tensor:
    """In float32 or wider."""
    return logits.softmax(-1, dtype=torch.float32 if logits.dtype in HALVES else None)


def _is_written_out(q: Tensor, k: Tensor) -> bool:
    if _form != "auto":
        return _form == "written"
    training_on_cpu = q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad
    return training_on_cpu and q.shape[-2] * k.shape[-2] <= MOST_EXPLICIT_TOKENS**2
