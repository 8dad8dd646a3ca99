"""What this machine can do: which device, how many cores, which precision, whether blocks can be compiled."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from ditkit.errors import InputError
from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "bf16", "fp32", "tf32"]
"""Of products and convolutions, over float32 weights: bf16 by autocast; float32; float32 whose factors a CUDA GPU rounds to
TF32, of 10 bits (elsewhere, and before Ampere, float32); auto: bf16 where it is fast, else fp32."""

WITHOUT_FLOAT64 = ("mps",)
"""Kinds of devices that have none: what is computed in it stays on the CPU, and is moved as float32."""

STAGED = 64 * 1024
"""Bytes up to which CUDA takes a tensor from ordinary memory at once; of larger ones it may let the host wait."""
BESIDE = ("cuda",)
"""Kinds of devices that work beside the host, which waits for them only where it reads something back."""


def _switch(value: Any) -> Any:
    """What files of version 0.1 have is true or false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Compile = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]
"""Whether blocks are compiled; auto: where it works and there is enough to compute (`backbones.compiling`)."""


def pick_device(name: DeviceName | torch.device = "auto") -> torch.device:
    """The device of that name, or the fastest one present; InputError when there is none of that name, or not here."""
    if not isinstance(name, str | torch.device):
        raise InputError(
            f"device: {name!r} is none; give auto or one of: {', '.join(get_args(DeviceName)[1:])}"
        )
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in present.items() if there))
    kind = name.type if isinstance(name, torch.device) else name
    if not present.get(kind, isinstance(name, torch.device)):
        why = "not available on this machine" if kind in present else "unknown"
        others = ", ".join(device for device, there in present.items() if there)
        raise InputError(f"`device` {name}: {why}; use auto or one of: {others}")
    return torch.device(name)


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_memory(make: Callable[[], torch.nn.Module], smaller: str) -> None:
    """InputError when the weights of the network that `make` makes are larger than this machine's memory; `smaller` names
    what makes them smaller."""
    try:
        with torch.device("meta"):
            weights = list(make().parameters())
    except (RuntimeError, TypeError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise InputError(
            f"the weights of this network are more than any machine can address; choose a smaller {smaller}"
        ) from None
    if not hasattr(os, "sysconf"):
        return
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = sum(weight.numel() * weight.element_size() for weight in weights)
    if needed > there:
        raise InputError(
            f"the weights of this network take {needed / 1e9:,.0f} GB, and this machine has {there / 1e9:,.0f}; choose a "
            f"smaller {smaller}"
        )


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products are faster than float32 ones here (AMX or AVX512-bf16 on a CPU)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def widest(device: torch.device) -> torch.dtype:
    """The most precise floating-point numbers that a device has."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def sent(value: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on the device, as its own type or another. The host does not wait for a CUDA GPU to copy it, which does so
    beside its other work: from pinned memory, where what is not small is put first if it is not there."""
    if (
        device.type == "cuda"
        and value.device.type == "cpu"
        and value.nbytes > STAGED
        and not value.is_pinned()
    ):
        value = value.pin_memory()
    return value.to(device, dtype or value.dtype, non_blocking=device.type in BESIDE)


@functools.lru_cache(maxsize=64)
def kept_on(device: torch.device, table: Tensor) -> Tensor:
    """A table that somebody keeps, on the device, where it is kept too: it is sent once, not whenever it is used."""
    return sent(table, device)


def numbers(values: Any, device: torch.device) -> Tensor:
    """A number, or a few in sequences, as a tensor on the device: `torch.tensor` makes the host wait for a GPU, this does not."""
    return sent(torch.tensor(values), device)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    """bf16 autocast over float32 weights, for bf16 or where `auto` finds that it pays. On a CUDA GPU this also settles of what
    float32's products are from here on, in the backward pass too: torch by itself takes float32 for those of matrices and
    TF32 for convolutions."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return (
        torch.autocast(device.type, dtype=torch.bfloat16) if uses_bf16(device, precision) else nullcontext()
    )


@contextmanager
def full_float32() -> Iterator[None]:
    """Within, products and convolutions of float32 are those of float32, whatever torch was set to: in bf16, or in TF32, which
    torch takes by itself for convolutions on a CUDA GPU, features move by more than a thousandth. What products of bf16 add up is
    float32, too. Also a decorator."""
    backends: Any = torch.backends  # some of its parts are unknown to its type
    kinds = backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv
    before = [kind.fp32_precision for kind in kinds]
    sums = backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    try:
        backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        backends.cuda.matmul.allow_bf16_reduced_precision_reduction = sums
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def uses_bf16(device: torch.device, precision: Precision) -> bool:
    """Whether products are computed in bf16."""
    return settled(device, precision) == "bf16"


def settled(device: torch.device, precision: Precision) -> Precision:
    """What `auto` is there; the others are themselves."""
    if precision != "auto":
        return precision
    return "bf16" if has_fast_bf16(device) else "fp32"


def no_compiler(device: torch.device, *, tried: bool = True) -> str | None:
    """Why torch.compile cannot work on this device, in a few words; None where it can.

    On a CPU it needs a C++ compiler (the variable CXX names another than the usual one), which is looked for; then
    compiling is tried, once, which takes seconds.
    """
    if device.type == "cpu":
        usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        compiler = os.environ.get("CXX", usual)
        if shutil.which(compiler) is None:
            return f"there is no C++ compiler {compiler}"
    return _compiling_fails(device.type) if tried else None


def check_compiler(device: torch.device, instead: str, *, tried: bool = True) -> None:
    """InputError where torch.compile cannot work, by `no_compiler`; `instead` is the flag that does without it."""
    if (reason := no_compiler(device, tried=tried)) is not None:
        remedy = "install g++, or name another in CXX" if device.type == "cpu" else "mend it"
        raise InputError(f"compiling: {reason}; {remedy}, or give {instead}")


@functools.cache
def _compiling_fails(kind: str) -> str | None:
    """How compiling a line and its gradient fails; None where it does not."""
    try:
        x = torch.ones(64, device=kind, requires_grad=True)
        torch.compile(lambda x: (2 * x).sin().sum())(x).backward()
    except Exception as error:
        return f"it fails ({type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]})"
    return None
