"""glibc's allocator, held to a policy under which resident memory follows live memory.

By default glibc raises its mmap threshold whenever a big block is freed, and from then on serves tensors out of a
heap that fragments and is rarely given back: a process may hold twice what is alive in it, and a frugal method looks
as large as a greedy one. With both thresholds fixed every tensor of 128 KiB or more is a mapping of its own, gone
the moment it is freed. The price is page faults: the host spends about a third more processor time.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

THRESHOLD = 128 * 1024
"""Bytes from which a block gets a mapping of its own."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # the numbers in glibc's <malloc.h>


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    # musl exports neither name: a missing gnu_get_libc_version is what tells it apart
    return libc if all(hasattr(libc, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim")) else None


def can_pin() -> bool:
    """Whether this process's C library lets itself be held to that policy."""
    return _glibc() is not None


def pin_malloc() -> bool:
    """Fix the mmap and trim thresholds at ``THRESHOLD`` bytes and keep to one arena; call before the first tensor.

    False where the C library is not glibc (musl, macOS), where nothing is changed.
    """
    libc = _glibc()
    if libc is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, THRESHOLD), (_M_TRIM_THRESHOLD, THRESHOLD), (_M_ARENA_MAX, 1))
    answers = [libc.mallopt(key, value) for key, value in settings]
    return answers == [1, 1, 1]


def trim() -> bool:
    """Give free heap pages back to the kernel; True when some were. False also where there is no glibc."""
    libc = _glibc()
    return libc is not None and bool(libc.malloc_trim(0) == 1)
