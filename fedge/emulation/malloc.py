"""glibc's allocator, held to a policy under which resident memory follows live memory.

By default glibc raises its mmap threshold whenever a big block is freed, and from then on serves tensors out of a
heap that fragments and is rarely given back: a process may hold twice what is alive in it, and a frugal method looks
as large as a greedy one. With both thresholds fixed every block from there on is a mapping of its own, gone the
moment it is freed. The price is page faults. Where the model is large, blocks of 32 to 128 KiB (activations of a few
rows, computed again in the midst of gradients that stay) fragment the heap by megabytes, and a step is long beside
its page faults; where it is small they are nearly all there is, and would take half as long again.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

THRESHOLD, FINE = 128 * 1024, 32 * 1024
"""Bytes from which a block gets a mapping of its own; ``FINE``: where the model is of ``LARGE`` bytes or more."""

LARGE = 8 << 20

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


def pin_malloc(model: int = 0) -> bool:
    """Fix the mmap and trim thresholds and keep to one arena; call before the first tensor.

    model: bytes of the weights that the process works with, which say how fine the mappings are.
    False where the C library is not glibc (musl, macOS), where nothing is changed.
    """
    libc = _glibc()
    if libc is None:
        return False
    mapped = FINE if model >= LARGE else THRESHOLD
    settings = ((_M_MMAP_THRESHOLD, mapped), (_M_TRIM_THRESHOLD, THRESHOLD), (_M_ARENA_MAX, 1))
    answers = [libc.mallopt(key, value) for key, value in settings]
    return answers == [1, 1, 1]


def trim() -> bool:
    """Give free heap pages back to the kernel; True when some were. False also where there is no glibc."""
    libc = _glibc()
    return libc is not None and bool(libc.malloc_trim(0) == 1)
