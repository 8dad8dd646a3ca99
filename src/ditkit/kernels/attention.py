"""Attention."""

from collections.abc import Iterable, Iterator, Sequence
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
    keys: Runs | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ) v over q (B, H, L, d) and k, v (B, H, M, d); 1 / sqrt(d) where none is given.

    With `mask`, bool (B, M) or (B, L, M) with a true in every row, only over the M where it is true. With `runs`, of one
    sequence (B = 1), every run of tokens attends to itself only, or to the run with its number among `keys`, those of the
    other sequence; a mask is (1, M) then, with a true in every run.

    Torch's fused kernel, but for training on a CPU: its backward there takes 1.5 to 4 times as long as
    the products written out (`ditkit bench`).

    In bf16 keys are taken relative to their mean, which changes no softmax. What keys have in common grows in training,
    as nothing holds it; rounded with it, the gradients of queries and keys become noise, and the network is lost within
    a thousand steps (docs/log.md).
    """
    if runs is not None and not _reads_runs(q):
        # Compiled, as one operator, or every mixture of lengths would be compiled anew.
        by_run = in_runs if torch.compiler.is_compiling() else _run_by_run
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return by_run(q, k, v, scale, runs.starts, (keys or runs).starts, mask)
    if k.dtype != torch.float32:
        k = k - k.mean(-2, keepdim=True)
    if runs is not None:
        return _in_runs(q, k, v, scale, runs.there, (keys or runs).there, mask)
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


def _in_runs(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, runs: Tensor, keys: Tensor, mask: Tensor | None
) -> Tensor:
    q, k, v = (part[0].transpose(0, 1) for part in (q, k, v))  # (L, H, d)
    if mask is not None:
        k, v, keys = _unmasked(k, v, keys, mask[0])
    # The whole sequence as the longest run costs nothing, and its length is known.
    out = cast(Tensor, varlen_attn(q, k, v, runs, keys, q.shape[0], k.shape[0], scale=scale))
    return out.transpose(0, 1)[None]


def _unmasked(k: Tensor, v: Tensor, starts: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values (M, H, d) where the mask (M,) is true, run after run, and where their runs begin. The others stand behind
    them and belong to no run, so that the host need not wait to learn how many there are."""
    order = (~mask).to(torch.uint8).argsort(stable=True)
    unread = ~mask.index_select(0, order)[:, None, None]
    # The kernel leaves their gradients as memory was; a fill passes none on.
    k, v = (part.index_select(0, order).masked_fill(unread, 0) for part in (k, v))
    before = F.pad(mask.cumsum(0, dtype=torch.int32), (1, 0))
    return k, v, before.index_select(0, starts)


def _run_by_run(
    q: Tensor, k: Tensor, v: Tensor, scale: float, runs: Tensor, keys: Tensor, mask: Tensor | None
) -> Tensor:
    """Of one sequence (1, H, L, d); runs of equal length that follow each other at once."""
    return _joined(
        attend(query, key, value, scale, there)
        for query, key, value, there in _alike((q,), (k, v), runs, keys, mask)
    )


def _alike(
    queries: Sequence[Tensor], others: Sequence[Tensor], runs: Tensor, keys: Tensor, mask: Tensor | None
) -> Iterator[tuple[Any, ...]]:
    """Tensors (1, H, L, d) of queries and (1, H, M, d) of keys as those of n runs of L' and M' tokens each: (n, H, L', d) and
    (n, H, M', d); and their mask (n, M')."""
    pairs = groupby(zip(runs.diff().tolist(), keys.diff().tolist(), strict=True))
    counts = [(len([*some]), *lengths) for lengths, some in pairs]
    ours, theirs = [(n, own) for n, own, _ in counts], [(n, other) for n, _, other in counts]
    masks: Iterable[Tensor | None] = [None] * len(counts)
    if mask is not None:
        masks = [part[:, 0, :, 0] for part in _split(mask[:, None, :, None], theirs)]
    several = [_split(part, ours) for part in queries] + [_split(part, theirs) for part in others]
    return zip(*several, masks, strict=True)


def _split(part: Tensor, counts: Sequence[tuple[int, int]]) -> list[Tensor]:
    """A tensor (1, H, L, d) as the runs of each (n, L'): (n, H, L', d)."""
    some = part[0].split([n * length for n, length in counts], dim=1)
    return [own.unflatten(1, count).transpose(0, 1) for own, count in zip(some, counts, strict=True)]


def _joined(parts: Iterable[Tensor]) -> Tensor:
    """The way back; in memory the heads of a token stand together, as they are read."""
    return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts]).transpose(0, 1)[None]


@torch.library.custom_op("ditkit::attend_in_runs", mutates_args=())
def in_runs(
    q: Tensor, k: Tensor, v: Tensor, scale: float, runs: Tensor, keys: Tensor, mask: Tensor | None
) -> Tensor:
    """`_run_by_run` for the compiler."""
    return _run_by_run(q, k, v, scale, runs, keys, mask)


@torch.library.custom_op("ditkit::attend_in_runs_backward", mutates_args=())
def _in_runs_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, runs: Tensor, keys: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """With P = softmax(S), S = scale q kᵀ, of each run: dv = Pᵀ g, dS = P ∘ (dP - rowsum(P ∘ dP)), dP = g vᵀ."""
    found = []
    for dout, query, key, value, there in _alike((g, q), (k, v), runs, keys, mask):
        if key.dtype != torch.float32:
            key = key - key.mean(-2, keepdim=True)
        logits = scale * query @ key.mT
        if there is not None:
            logits = logits.masked_fill(~there[:, None, None], -torch.inf)
        p = _softmax(logits)
        dp = dout @ value.mT
        ds = (scale * p * (dp - (p * dp).sum(-1, keepdim=True))).to(key.dtype)
        found.append((ds @ key, ds.mT @ query, p.to(key.dtype).mT @ dout))
    dq, dk, dv = (_joined(parts) for parts in zip(*found, strict=True))
    return dq, dk, dv


def _like(q: Tensor) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    q, k, v, ctx.scale, *others = inputs
    ctx.save_for_backward(q, k, v, *others)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, *others = ctx.saved_tensors
    return *_in_runs_backward(gradient, q, k, v, ctx.scale, *others), None, None, None, None


in_runs.register_fake(lambda q, k, v, scale, runs, keys, mask: _like(q))
in_runs.register_autograd(_backward, setup_context=_keep)
_in_runs_backward.register_fake(lambda g, q, k, v, scale, runs, keys, mask: (_like(q), _like(k), _like(v)))


def _softmax(logits: Tensor) -> Tensor:
    """In float32 or wider."""
    return logits.softmax(-1, dtype=torch.float32 if logits.dtype in HALVES else None)


def _is_written_out(q: Tensor, k: Tensor) -> bool:
    if _form != "auto":
        return _form == "written"
    training_on_cpu = q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad
    return training_on_cpu and q.shape[-2] * k.shape[-2] <= MOST_EXPLICIT_TOKENS**2
