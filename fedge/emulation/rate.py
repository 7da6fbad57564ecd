"""A link whose rate changes over time: how long a message takes from the second at which it is sent."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rate:
    """A rate in bit/s that changes at given seconds and starts again after the last one's step.

    ``starts[i]`` is when ``rates[i]`` begins, from 0 upwards; ``length`` is when the trace starts again."""

    starts: tuple[float, ...]
    rates: tuple[float, ...]
    length: float = math.inf
    _sums: tuple[float, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.starts or self.starts[0] != 0 or len(self.starts) != len(self.rates):
            raise ValueError("a rate starts at second 0, and each start has one rate")
        if any(a >= b for a, b in zip(self.starts, (*self.starts[1:], self.length), strict=True)):
            raise ValueError("a rate's starts rise, and its length lies beyond the last")
        if min(self.rates) < 0 or max(self.rates) <= 0:
            raise ValueError("rates are never negative, and one of them is above zero")
        sums = [0.0]
        for start, end, rate in zip(self.starts, (*self.starts[1:], self.length), self.rates, strict=True):
            sums.append(sums[-1] + (end - start) * rate if rate else sums[-1])
        object.__setattr__(self, "_sums", tuple(sums))

    def bits(self, until: float) -> float:
        """Bits that can cross from second 0 until second ``until``."""
        rounds, rest = (0.0, until) if self.length == math.inf else divmod(until, self.length)
        step = bisect_right(self.starts, rest) - 1
        here = self._sums[step] + (rest - self.starts[step]) * self.rates[step]
        return here + (rounds * self._sums[-1] if rounds else 0.0)

    def finish(self, start: float, nbytes: float) -> float:
        """The second at which the last of ``nbytes`` bytes has crossed when the first is sent at ``start``."""
        if nbytes <= 0:
            return start
        goal = self.bits(start) + nbytes * 8
        rounds = 0.0
        if self.length != math.inf:
            rounds = math.floor(goal / self._sums[-1])
            goal -= rounds * self._sums[-1]
            if goal <= 0:  # exactly at a round's end: the last step in which something crossed
                rounds, goal = rounds - 1, goal + self._sums[-1]
        step = next(i for i, total in enumerate(self._sums[1:]) if total >= goal)
        found = self.starts[step] + (goal - self._sums[step]) / self.rates[step]
        return max(start, found + (rounds * self.length if rounds else 0.0))
