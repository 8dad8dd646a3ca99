"""What is freed stays with the process: the system is asked for it once."""

import os
import subprocess
import sys

import pytest

from ditkit import heap

TAKE_TWICE = """
import resource, torch
from ditkit.heap import keep_freed_memory

def faults(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        torch.ones(16 * 1024 * 1024)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed_memory()
faults(1)
print(kept, faults(4))
"""
PAGES = 16 * 1024  # of 4 kB in 64 MB


def run(**variables):
    done = subprocess.run(
        [sys.executable, "-c", TAKE_TWICE], capture_output=True, text=True, env={**environment(), **variables}
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


def environment():
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }


needs_glibc = pytest.mark.skipif(not heap.is_glibc(), reason="needs Linux with glibc")


@needs_glibc
def test_memory_that_was_freed_is_taken_again_without_the_system():
    kept, faults = run()
    assert kept
    assert faults < PAGES / 10


@needs_glibc
@pytest.mark.parametrize("variables", [{"MALLOC_TRIM_THRESHOLD_": "0"}, {"GLIBC_TUNABLES": ""}])
def test_what_the_user_says_of_malloc_stays(variables):
    assert not run(**variables)[0]


@needs_glibc
def test_limits_of_addresses_are_not_used_up(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**34, 2**34))
    assert not heap.can_reserve()


def test_other_systems_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(heap, "is_glibc", lambda: False)
    assert not heap.keep_freed_memory()
