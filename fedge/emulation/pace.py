"""The real clock: when on the wall clock what the virtual clock foretold may happen, and holding messages until then.

The virtual clock says when a turn begins, when its question is there, when the device has computed, and when its answer
has arrived. The real clock is paced by it: second ``v`` of the virtual clock is second ``origin + v · slow`` of the
wall's. Every moment is reckoned from the origin and never from the moment before it, so a late wake-up is caught up
with by what follows and nothing adds up. What ran ahead waits. What fell behind is late by so much, and is told so;
the link still takes its time after that.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fedge.emulation.link import Link, transfer_seconds


@dataclass(frozen=True)
class Timing:
    """One turn of one device in seconds of the virtual clock, before the length of its answer is known.

    now: when the server asked. start: when the device takes the question up. down: bytes of the question. compute:
    seconds of its work. down_draw, up_draw: what moves each message's latency, from [0, 1). end: when an answer begins
    to be too late to count.
    """

    now: float
    start: float
    down: int
    compute: float
    down_draw: float
    up_draw: float
    end: float = math.inf


@dataclass(frozen=True)
class Turn:
    """A turn on the wall clock: its timing, and how seconds of the virtual clock become those of ``time.monotonic``."""

    timing: Timing
    origin: float
    slow: float = 1.0

    def wall(self, virtual: float) -> float:
        """The second of the wall clock at which the virtual clock shows ``virtual``."""
        return self.origin + virtual * self.slow if virtual != math.inf else math.inf

    def passed(self, nbytes: int, way: Literal["down", "up"], link: Link) -> float:
        """When the first ``nbytes`` of a message have crossed, on the wall clock.

        Never later than the turn's end: after it no answer counts, and nobody has to be kept waiting for it.
        """
        at = self.timing
        if way == "down":
            seconds = at.start + transfer_seconds(nbytes, link, "down", at.down_draw, at.start)
        else:
            begun = self.computed(link)
            seconds = begun + transfer_seconds(nbytes, link, "up", at.up_draw, begun)
        return min(self.wall(seconds), self.wall(at.end))

    def computed(self, link: Link) -> float:
        """When the device has done its work, on the virtual clock."""
        at = self.timing
        return at.start + transfer_seconds(at.down, link, "down", at.down_draw, at.start) + at.compute

    def to_json(self) -> dict[str, Any]:
        """It as JSON; an end that never comes is None there."""
        end = None if self.timing.end == math.inf else self.timing.end
        return {**asdict(self.timing), "end": end, "origin": self.origin, "slow": self.slow}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Turn:
        """What ``to_json`` gave."""
        timing = {name: plain[name] for name in Timing.__dataclass_fields__}
        timing["end"] = math.inf if timing["end"] is None else timing["end"]
        return cls(Timing(**timing), float(plain["origin"]), float(plain["slow"]))


class Timeline:
    """Where a run's virtual clock stands on the wall clock.

    slow: seconds of the wall clock for each of the virtual one. slipped: seconds of the wall clock that the host took
    between turns (tests, checkpoints, devices that fell behind) and that the virtual clock does not have.
    """

    def __init__(
        self,
        slow: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.slow = slow
        self.slipped = 0.0
        self._clock = clock
        self._sleep = sleep
        self._origin: float | None = None
        self._now = -math.inf

    def turn(self, timing: Timing) -> Turn:
        """A device's turn on the wall clock; the first of those asked at one moment says where that moment lies."""
        if self._origin is None or timing.now > self._now:
            self._anchor(timing.now)
        assert self._origin is not None
        return Turn(timing, self._origin, self.slow)

    def reach(self, virtual: float) -> None:
        """Wait until the wall clock shows this second of the virtual clock; at once when it is past."""
        if self._origin is not None:
            left = self._origin + virtual * self.slow - self._clock()
            if left > 0:
                self._sleep(left)

    def open(self, virtual: float) -> None:
        """A round begins at this second: what the host has done since the last one is none of the devices' time."""
        self._anchor(virtual)

    def slow_to(self, slow: float, virtual: float) -> None:
        """From this second of the virtual clock on, take ``slow`` seconds of the wall clock for each of its."""
        if self._origin is not None:
            self._origin += virtual * (self.slow - slow)
        self.slow = slow

    def _anchor(self, virtual: float) -> None:
        self._now = virtual
        wall = self._clock()
        if self._origin is None:
            self._origin = wall - virtual * self.slow
        late = wall - (self._origin + virtual * self.slow)
        if late > 0:  # what ran ahead is still to come, and stays where it is
            self._origin += late
            self.slipped += late


class Pacer:
    """The paces of a device's line: told of each piece of a message, it says how long that may not pass yet.

    A message without ``pace`` in its header passes at once. ``up``, ``down`` and ``hurry`` are called in the line's
    thread, ``hold`` in the working one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.link: Link | None = None
        self._clock = clock
        self._hurried = threading.Event()
        self._passing: dict[str, tuple[Mapping[str, Any], int]] = {}

    def down(self, nbytes: int, header: Mapping[str, Any]) -> float:
        """Seconds until so many more bytes of the message with this header are here."""
        return self._wait("down", nbytes, header)

    def up(self, nbytes: int, header: Mapping[str, Any]) -> float:
        """Seconds until so many more bytes of the message with this header have left."""
        return self._wait("up", nbytes, header)

    def hurry(self) -> None:
        """Nothing waits for this turn any more: let everything pass."""
        self._hurried.set()

    def hold(self, turn: Turn) -> float:
        """Wait until the device has done its work; returns by how many seconds it is too late for that."""
        assert self.link is not None
        due = min(turn.wall(turn.computed(self.link)), turn.wall(turn.timing.end))
        left = due - self._clock()
        if left > 0:
            self._hurried.wait(left)
        return max(0.0, -left)

    def _wait(self, way: Literal["down", "up"], nbytes: int, header: Mapping[str, Any]) -> float:
        told = header.get("pace")
        if told is None or self.link is None:
            return 0.0
        of, passed = self._passing.get(way, (None, 0))
        if way == "down" and of is not header:
            self._hurried.clear()  # another question: the last one's hurry is over
        if self._hurried.is_set():
            return 0.0
        passed = nbytes + (passed if of is header else 0)
        self._passing[way] = (header, passed)
        return Turn.from_json(told).passed(passed, way, self.link) - self._clock()


def later(turn: Turn, seconds: float) -> Turn:
    """The same turn, so many seconds of the wall clock later, but for its end."""
    end = turn.timing.end - seconds / turn.slow
    return replace(turn, origin=turn.origin + seconds, timing=replace(turn.timing, end=end))
