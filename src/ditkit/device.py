"""What this machine can do: which device, how many cores, which precision, whether blocks can be compiled."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from ditkit.errors import InputError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "bf16", "fp32"]


def pick_device(name: DeviceName = "auto") -> torch.device:
    """The device asked for, or the fastest one present; InputError when it is not there."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in present.items() if there))
    if not present[name]:
        others = ", ".join(device for device, there in present.items() if there)
        raise InputError(f"--device {name}: not available on this machine; use auto or one of: {others}")
    return torch.device(name)


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products are faster than float32 ones here (AMX or AVX512-bf16 on a CPU)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    """bf16 autocast over float32 weights where asked for, or where `auto` finds that it pays."""
    if precision == "fp32" or (precision == "auto" and not has_fast_bf16(device)):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def check_compiler(device: torch.device) -> None:
    """InputError where torch.compile lacks what it needs: a C++ compiler for a CPU."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "cl")):
        raise InputError("compiling needs a C++ compiler: install g++, or give --no-compile")
