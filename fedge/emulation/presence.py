"""When a device can be reached, in seconds of emulated time: joining and leaving, day and night, churn, a recording.

Each of them says for any second whether the device is there and when that changes next; it is there when all of them
say so. What is drawn is drawn by a hash of what it is for, so a run that is resumed, or asks in another order, finds
the same device at the same second.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

#: After so many changes in a row at which a device is still away it is taken to stay away.
_CHANGES = 10_000


class Pattern(Protocol):
    """Something that is on or off over time."""

    def at(self, second: float) -> tuple[bool, float]:
        """Whether it is on at this second, and the second, beyond it, from which on it may be otherwise."""
        ...


@dataclass(frozen=True)
class Stay:
    """There from one second to another: a late joiner, or a device that leaves for good."""

    joins: float = 0.0
    leaves: float = math.inf

    def at(self, second: float) -> tuple[bool, float]:
        if second < self.joins:
            return False, self.joins
        return second < self.leaves, self.leaves if second < self.leaves else math.inf


@dataclass(frozen=True)
class Cycle:
    """Day and night: there for ``on`` seconds and away for ``off``, again and again; ``start``: when a day begins."""

    on: float
    off: float
    start: float = 0.0

    def at(self, second: float) -> tuple[bool, float]:
        length = self.on + self.off
        day = math.floor((second - self.start) / length)
        begun = self.start + day * length
        dusk, dawn = begun + self.on, begun + length
        return (True, dusk) if second < dusk else (False, max(dawn, math.nextafter(second, math.inf)))


@dataclass(frozen=True)
class Steps:
    """A recording: from each second on there or not, and from the beginning again after ``length`` seconds."""

    seconds: tuple[float, ...]
    there: tuple[bool, ...]
    length: float

    def at(self, second: float) -> tuple[bool, float]:
        laps, rest = divmod(second, self.length)
        step = bisect_right(self.seconds, rest) - 1
        ends = self.seconds[step + 1] if step + 1 < len(self.seconds) else self.length
        return self.there[step], max(laps * self.length + ends, math.nextafter(second, math.inf))


@dataclass
class Churn:
    """Stays and absences of random length, exponential with these means in seconds; ``draw`` gives the n-th in [0, 1).

    The device is there at second 0.
    """

    stay: float
    away: float
    draw: Callable[[int], float]
    _changes: list[float] = field(default_factory=lambda: [0.0])

    def at(self, second: float) -> tuple[bool, float]:
        while self._changes[-1] <= second:
            number = len(self._changes) - 1
            mean = self.away if number % 2 else self.stay
            self._changes.append(self._changes[-1] - mean * math.log(1 - self.draw(number)))
        following = bisect_right(self._changes, second)
        return following % 2 == 1, self._changes[following]


@dataclass(frozen=True)
class Presence:
    """A device's patterns together; without any it is always there.

    drops: the share of its turns in which it goes away on the way, whatever the patterns say.
    """

    patterns: tuple[Pattern, ...] = ()
    drops: float = 0.0

    def there(self, second: float) -> bool:
        """Whether the device can be reached at this second."""
        return all(pattern.at(second)[0] for pattern in self.patterns)

    def until(self, second: float) -> float:
        """When a device that is there at this second goes away; infinite for never."""
        gone = [self._off(pattern, second) for pattern in self.patterns]
        return min(gone, default=math.inf)

    def back(self, second: float) -> float:
        """The first second from this one on at which the device is there; infinite for never."""
        for _ in range(_CHANGES):
            away = [end for on, end in (pattern.at(second) for pattern in self.patterns) if not on]
            if not away:
                return second
            second = max(away)
            if second == math.inf:
                break
        return math.inf

    @staticmethod
    def _off(pattern: Pattern, second: float) -> float:
        for _ in range(_CHANGES):  # a recording may say twice in a row that the device is there
            on, end = pattern.at(second)
            if not on or end == math.inf:
                return second if not on else math.inf
            second = end
        return math.inf

    def drop(self, start: float, arrival: float, drawn: tuple[float, float]) -> float:
        """When a turn from ``start`` to ``arrival`` breaks off; infinite when it doesn't.

        drawn: two numbers from [0, 1): whether the device drops out of this turn, and where on the way.
        """
        chance, place = drawn
        broken = start + place * (arrival - start) if chance < self.drops else math.inf
        gone = min(broken, self.until(start))
        return gone if gone < arrival else math.inf
