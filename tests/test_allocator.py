"""Freed memory is kept within the context alone, and the weights do not depend on it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ddlib import allocator
from ddlib.allocator import memory_kept

GLIBC = sys.platform == "linux" and "glibc" in os.confstr("CS_GNU_LIBC_VERSION")
needs_glibc = pytest.mark.skipif(not GLIBC, reason="only glibc's allocator is asked")

COUNT = """
import resource, sys

size = 100
from ddlib.allocator import memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        b"x" * (size << 20)  # touches each page; 100 MiB are more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
with memory_kept():
    faults()
    kept = faults()
faults()
print(usual, kept, faults())
"""


def count(**environment: str) -> list[int]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    ran = subprocess.run(
        [sys.executable, "-c", COUNT], env=clean | environment, capture_output=True, text=True, check=True
    )
    return [int(word) for word in ran.stdout.split()]


@needs_glibc
def test_pages_are_touched_once():
    usual, kept, afterwards = count()
    assert kept < usual / 20
    assert afterwards > usual / 2


@needs_glibc
def test_who_has_set_malloc_is_left_alone():
    usual, kept, _ = count(MALLOC_MMAP_THRESHOLD_=str(2**20))
    assert kept > usual / 2


def test_entered_many_times(monkeypatch):
    calls = []
    monkeypatch.setattr(allocator, "_set_thresholds", lambda *sizes: calls.append(sizes))
    with memory_kept(), memory_kept():
        pass
    assert len(calls) == 2  # as the first enters, as the last leaves

    def once(_: int) -> None:
        with memory_kept():
            torch.ones(10).sum()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(once, range(200)))
    with pytest.raises(KeyError), memory_kept():
        raise KeyError
    assert allocator._users == 0
    assert calls[::2] == [calls[0]] * (len(calls) // 2)
    assert calls[1::2] == [calls[1]] * (len(calls) // 2)


def test_without_glibc(monkeypatch):
    asked = []
    monkeypatch.setattr(allocator.os, "environ", {})  # Dask sets MALLOC_TRIM_THRESHOLD_
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: asked.append(name))  # None has no mallopt
    with memory_kept():
        assert asked == [None]
