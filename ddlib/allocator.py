"""Memory that one step frees is kept for the next, while a network trains on a CPU.

glibc hands large freed blocks back to the system, and a step later asks for them anew; each page is then a page fault.
Without them VGG9 trained 5 % faster, at 2×2 as at 4×4, in one measurement (`results/bench/ways.csv`); the noise of a
machine can hide it.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_MIB = 2**20
_users, _lock = 0, Lock()


@contextmanager
def memory_kept() -> Iterator[None]:
    """Within, freed memory stays with this process; afterwards it goes back as usual.

    Nothing is done where the C library is not glibc, or where the user has set the environment's MALLOC_ variables.
    May be entered many times at once, by threads too.
    """
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    global _users
    with _lock:
        before, _users = _users, _users + change
        if bool(before) != bool(_users):
            # Afterwards: the highest that glibc itself goes to as a program frees large blocks.
            _set_thresholds(*((1024 * _MIB, 2047 * _MIB) if _users else (32 * _MIB, 64 * _MIB)))


def _set_thresholds(mmap: int, trim: int) -> None:
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_MMAP, mmap)
    mallopt(_TRIM, trim)
