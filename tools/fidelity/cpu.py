"""The share of a core that each mechanism leaves a process that would take all of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from fedge.emulation import quota
from fedge.errors import LimitError
from fedge.run.doctor import watched
from tools.fidelity.seen import against

SHARES = (0.05, 0.10, 0.25, 0.50, 1.00)


def measure(quick: bool) -> Iterator[dict[str, Any]]:
    """Every mechanism that works here at every share."""
    repeats, seconds = (1, 1.0) if quick else (5, 3.0)
    for name, open_throttle in quota.KINDS.items():
        for share in SHARES:
            try:
                seen = [
                    100 * watched(open_throttle("fidelity", f"{name}-{os.getpid()}"), share, seconds)
                    for _ in range(repeats)
                ]
            except LimitError:
                break
            yield against(f"share of a core, {name}, {share:.0%}", 100 * share, seen, "% of a core", within=5.0)
