"""Which faults strike whom when, as the file asks and the seed draws; and the account of how they ended.

A fault is drawn by names alone (seed, stage, round, device), never by what has happened so far, so that a run that was
killed, resumed, or done with another number of processes meets the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedge.core.rng import seed_for
from fedge.spec.faults import FaultSpec

#: After these the device is gone for the round; the others only delay it, or should do it no harm.
LOSING = ("crash", "hang", "corrupt", "out_of_memory", "disk_full", "kill", "pause")
#: Those that no file asks for.
BY_HAND = ("kill", "pause")


@dataclass(frozen=True)
class Fault:
    """One fault that strikes one turn. amount: as ``FaultSpec``'s. seed: for what the fault itself draws, such as the
    bit that flips, and whether a crash comes before the work or after it."""

    kind: str
    amount: float = 0.0
    seed: int = 0

    @property
    def loses(self) -> bool:
        return self.kind in LOSING

    def to_json(self) -> dict[str, Any]:
        """It as a message's header holds it."""
        return asdict(self)


class Faults:
    """The faults of one stage, and how those that struck have ended.

    counts[device][kind][end] is how often; ``end`` is 'lost', 'answered', 'late' or 'surplus'.
    """

    def __init__(self, specs: Sequence[FaultSpec] = (), seed: int = 0, stage: int = 0):
        self._specs = [(number, spec) for number, spec in enumerate(specs) if stage in spec.stages]
        self._place = (seed, "stage", stage)
        self._pending: dict[str, tuple[int, tuple[Fault, ...]]] = {}

    def strike(self, device: str, round: int, turn: int, turns: int) -> tuple[Fault, ...]:
        """The faults that strike a device's turn, both counted from 0; ``turns``: how many its round is to have."""
        found = []
        for number, spec in self._specs:
            if device not in spec.devices or not _within(spec, round + 1):
                continue
            seed = seed_for(*self._place, round, device, "fault", number)
            if seed / float(1 << 63) >= spec.probability:
                continue
            when = seed_for(seed, "turn") % max(1, turns) if spec.turn is None else spec.turn - 1
            if when == turn:
                found.append(Fault(spec.kind, spec.amount, seed_for(seed, "how")))
        if found:
            self._pending[device] = (turn, tuple(found))
        else:
            self._pending.pop(device, None)
        return tuple(found)

    def met(self, device: str) -> tuple[Fault, ...]:
        """What has struck a device's present turn."""
        return self._pending.get(device, (0, ()))[1]

    def by_hand(self, device: str, kind: str) -> None:
        """Something strikes a device's present turn beside what the file asks for."""
        turn, found = self._pending.get(device, (0, ()))
        self._pending[device] = (turn, (*found, Fault(kind)))

    def settle(
        self, device: str, end: str, counts: dict[str, dict[str, int]], detail: str = ""
    ) -> list[dict[str, Any]]:
        """Count what struck the device's turn by how it ended; a record for each."""
        turn, found = self._pending.pop(device, (0, ()))
        for fault in found:
            ends = counts.setdefault(fault.kind, {})
            ends[end] = ends.get(end, 0) + 1
        return [{"device": device, "kind": fault.kind, "turn": turn, "ended": end, "detail": detail} for fault in found]


def _within(spec: FaultSpec, round: int) -> bool:
    return spec.rounds is None or any(first <= round <= last for first, last in spec.rounds)


def slowed(faults: Sequence[Fault]) -> float:
    """How many times longer a turn's work takes."""
    factor = 1.0
    for fault in faults:
        if fault.kind == "slow":
            factor *= fault.amount
    return factor


def away(faults: Sequence[Fault]) -> float:
    """Seconds for which an answer is held back, in the devices' time."""
    return sum((fault.amount for fault in faults if fault.kind == "partition"), 0.0)


def losing(faults: Sequence[Fault]) -> Fault | None:
    """The first that takes the device out of the round."""
    return next((fault for fault in faults if fault.loses), None)


def total(counts: Sequence[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """The sums of several devices' counts, by kind and end."""
    found: dict[str, dict[str, int]] = {}
    for one in counts:
        for kind, ends in one.items():
            for end, count in ends.items():
                found.setdefault(kind, {})[end] = found.get(kind, {}).get(end, 0) + count
    return {kind: dict(sorted(found[kind].items())) for kind in sorted(found)}
