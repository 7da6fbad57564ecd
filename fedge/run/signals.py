"""Ctrl-C and SIGTERM, while a command has work that must end in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def heeded(ring: Callable[[int], None]) -> Iterator[None]:
    """Within it SIGINT and SIGTERM call ``ring`` with their number; afterwards they do what they did before.

    Only the main thread may say what signals do, so in any other nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda n, _: ring(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
