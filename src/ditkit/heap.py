"""Where tensors on a CPU get their memory from.

A training step takes and frees gigabytes. By default the C library gives what is freed back to the system, which hands it
out again page by page, cleared: a sixth of a training's time (docs/results.md). Here it stays with the process.
"""

import ctypes
import os
from pathlib import Path

# Of glibc's malloc.h and the kernel's mman.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
HUGE_PAGES = 14  # MADV_HUGEPAGE

HUGE = 2 * 1024 * 1024
"""Bytes of a huge page on most processors; of larger ones the system uses none here."""
AHEAD = 64 * 1024 * 1024
"""Bytes by which the heap grows at least."""
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
MAPS = Path("/proc/self/maps")


def keep_freed_memory() -> bool:
    """Let memory that is freed stay with this process, in huge pages where the system has them; whether that was possible.

    On Linux with glibc, unless a variable (MALLOC_..., GLIBC_TUNABLES) says how its malloc is to work. What the process has
    at most does not change, but it keeps that until it ends.
    """
    if not is_glibc() or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    kept = libc.mallopt(MMAP_MAX, 0) and libc.mallopt(TRIM_THRESHOLD, -1) and libc.mallopt(TOP_PAD, AHEAD)
    if kept and can_reserve():
        _use_huge_pages(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return bool(kept)


def is_glibc() -> bool:
    """Whether this is Linux with glibc."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):
        return False


def can_reserve() -> bool:
    """Whether addresses cost nothing: no limit of them, and a system that counts memory when it is used."""
    import resource  # which Windows has not

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return False
    try:
        return OVERCOMMIT.read_text(encoding="utf-8").strip() != "2"
    except OSError:
        return False


def _use_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Let the heap reach so many bytes further, of which none is used yet, and ask for huge pages there."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free(libc.malloc(size))
    lines = MAPS.read_text(encoding="utf-8").splitlines()
    if heap := next((line for line in lines if line.endswith("[heap]")), None):
        start, end = (int(address, 16) for address in heap.split()[0].split("-"))
        start += -start % HUGE
        if start < end:
            libc.madvise(start, end - start, HUGE_PAGES)
