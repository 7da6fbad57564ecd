"""The real clock of a stage's processes: each turn's place on the wall clock, and each device's share of a core."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fedge.emulation.pace import Timeline, Turn
from fedge.emulation.quota import KINDS, Throttle
from fedge.errors import LimitError
from fedge.run.admission import ROOM
from fedge.run.events import Send

#: A cap below this would be less than the kernel can hold, a millisecond in every hundred with some room above it.
_LEAST = 0.02
#: In a device's first turn its cap is so many times what is estimated, and no less than this.
_FIRST, _FIRST_LEAST = 2.0, 0.1


@dataclass
class _Held:
    """A process under a quota: the turn that it is at, and whether the quota is on."""

    throttle: Throttle | None
    turn: Turn | None = None
    capped: bool = False


@dataclass
class Pacing:
    """The quotas and turns of the processes of a stage.

    quota: the mechanism by name, None for waiting alone. needs: the share of a core that a device needs with the offer
    that it has picked, estimated; what its turns really take is learned. revise: makes of what was learned, and of the
    present factor, the factor by which all is slowed down from the next round on. opened: told of every group that was
    made.
    """

    timeline: Timeline
    run: str
    quota: str | None
    needs: Callable[[str, int], float]
    revise: Callable[[Mapping[str, float], float], float] = lambda needs, slow: slow
    opened: Callable[[Throttle], None] = lambda throttle: None
    _held: dict[str, _Held] = field(default_factory=dict)
    _latest: dict[str, float] = field(default_factory=dict)
    _learned: dict[tuple[str, int], float] = field(default_factory=dict)

    def open(self, now: float) -> None:
        """A round begins at this second of the virtual clock."""
        slow = self.revise(self._latest, self.timeline.slow)
        if slow != self.timeline.slow:
            self.timeline.slow_to(slow, now)
        self.timeline.open(now)

    def forked(self, host: str, incarnation: int, pid: int) -> None:
        """A process is there: it gets a group of its own, without a quota yet."""
        throttle = None
        if self.quota is not None:
            throttle = KINDS[self.quota](self.run, f"cpu-{host}.{incarnation}")
            self.opened(throttle)
            throttle.join(pid)
        self._held[host] = _Held(throttle)

    def begin(self, host: str, work: Send) -> Turn | None:
        """A process is about to be asked: puts its quota on; None for what is only replayed, as fast as it goes."""
        held = self._held.get(host)
        if work.timing is None or held is None:
            return None
        held.turn = self.timeline.turn(work.timing)
        share = self._share(work)
        if held.throttle is not None and share < 1:
            with suppress(LimitError):  # it has just died, which is heard of elsewhere
                held.throttle.apply(share)
                held.capped = True
        return held.turn

    def _share(self, work: Send) -> float:
        assert work.pinned is not None
        need = self._learned.get((work.device, work.pinned))
        if need is None:  # an estimate, and a first turn builds the model too
            return min(
                1.0, max(_FIRST_LEAST, _FIRST * ROOM * self.needs(work.device, work.pinned) / self.timeline.slow)
            )
        return min(1.0, max(_LEAST, ROOM * need))

    def answered(self, host: str, device: str, choice: int | None, told: dict[str, Any]) -> dict[str, float]:
        """A device has answered: takes its quota off and says what the turn took; see ``Answered.paced``."""
        held = self._held.get(host)
        if held is None or held.turn is None:
            return {}
        turn, held.turn = held.turn, None
        self._free(held)
        cpu = float(told["cpu_s"])
        if choice is not None and turn.timing.compute > 0:
            self._learned[device, choice] = self._latest[device] = cpu / turn.timing.compute
        wall = time.monotonic() - turn.wall(turn.timing.start)
        return {"wall_s": wall, "cpu_s": cpu, "behind_s": float(told["behind_s"]), "slowdown": turn.slow}

    def look(self) -> None:
        """Take the quota off those whose answers can't count any more; to be called now and then."""
        now = time.monotonic()
        for held in self._held.values():
            if held.capped and held.turn is not None and held.turn.wall(held.turn.timing.end) <= now:
                self._free(held)

    def hurry(self, host: str) -> None:
        """Nobody waits for this process any more."""
        if host in self._held:
            self._free(self._held[host])

    def ended(self, host: str) -> None:
        """A process is gone, and its group with it."""
        held = self._held.pop(host, None)
        if held is not None and held.throttle is not None:
            held.throttle.close()

    def _free(self, held: _Held) -> None:
        if held.throttle is not None and held.capped:
            held.throttle.lift()
        held.capped = False
