"""What a device tells while it works: the phase that is under way, seconds by phase, and counters."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableSequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

#: Phases have a number so that one byte of shared memory tells the parent what a killed process was doing.
PHASES = ("idle", "build", "download", "load", "forward", "backward", "optimizer", "pack", "upload", "other")


@dataclass
class SpanMeter:
    """Spans and counters of one device. ``slot[0]`` always holds the number of the innermost phase under way."""

    slot: MutableSequence[int] | bytearray | Any = field(default_factory=lambda: bytearray(1))
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        before = self.slot[0]
        self.slot[0] = PHASES.index(name) if name in PHASES else len(PHASES) - 1
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.slot[0] = before

    def count(self, name: str, value: float | Tensor, unit: str = "") -> None:
        """Add to a counter; a tensor's value is read here, outside of what is traced."""
        self.counts[name] = self.counts.get(name, 0.0) + float(value)

    def take(self) -> dict[str, dict[str, float]]:
        """Seconds and counts since the last call."""
        taken = {"seconds": self.seconds, "counts": self.counts}
        self.seconds, self.counts = {}, {}
        return taken


class NullMeter:
    """A meter that notes nothing: for tracing, where tensors have no values."""

    def span(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def count(self, name: str, value: float | Tensor, unit: str = "") -> None:
        pass
