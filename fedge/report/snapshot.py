"""Where a run stands at one moment, as a value: what the live view, ``ps`` and ``stats`` show.

A run's folder holds the last one as ``progress.json``, written while the run is under way and once more at its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

#: What a device can be at, in the order in which views count them.
STATES = ("picking", "computing", "sending", "waiting", "lost")
#: What a run can be at. Only in the first two can it still turn out that it cannot be run at all.
PHASES = ("preparing", "planning", "baselines", "rounds", "closing", "ended")


class Passing(str):
    """A line of progress that the next one replaces: a plain log has it, a live view shows it in the meantime."""


@dataclass(frozen=True)
class DeviceAt:
    """One device. memory: bytes that it holds now as its budget counts them, None where no process of it is there.

    state: one of ``STATES``; lost: the cause of the last loss, whether or not it came back after.
    """

    name: str
    state: str
    method: str | None = None
    variant: Mapping[str, Any] | None = None
    memory: int | None = None
    budget_memory: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    rounds: int = 0
    losses: int = 0
    lost: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    at: seconds of the epoch. elapsed_s: wall time spent by then, before an interruption too. left_s: the wall time that
    the rounds ahead would take at the present pace, None while no round tells it. stage_index counts from 0, ``round``
    from 1 (0: none has begun). curve: the values of ``measure`` that this stage's tests gave. virtual_s: emulated time.
    """

    run: str
    federation: str
    at: float
    elapsed_s: float
    phase: str
    stage: str | None = None
    stage_index: int = 0
    stages: int = 0
    method: str | None = None
    round: int = 0
    rounds: int = 0
    virtual_s: float = 0.0
    left_s: float | None = None
    measure: str | None = None
    curve: tuple[float, ...] = ()
    devices: tuple[DeviceAt, ...] = ()

    def count(self, state: str) -> int:
        """How many devices are at ``state``."""
        return sum(device.state == state for device in self.devices)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``progress.json``."""
        return {**vars(self), "curve": list(self.curve), "devices": [dict(vars(device)) for device in self.devices]}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Snapshot:
        """What ``to_json`` gave, without keys that this version doesn't know. Raises TypeError for other shapes."""
        known = _known(cls, plain)
        known["curve"] = tuple(plain.get("curve") or ())
        known["devices"] = tuple(DeviceAt(**_known(DeviceAt, line)) for line in plain.get("devices") or ())
        return cls(**known)


def _known(kind: type, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that there are; TypeError for a number or a text that is none."""
    found = {field.name: plain[field.name] for field in fields(kind) if field.name in plain}
    for field in fields(kind):
        first, *rest = str(field.type).split(" | ")
        value = found.get(field.name)
        if first not in _KINDS or field.name not in found or (value is None and "None" in rest):
            continue
        if not isinstance(value, _KINDS[first]) or isinstance(value, bool) or value in (math.inf, -math.inf):
            raise TypeError(f"'{field.name}' is a {type(value).__name__}")
    return found


_KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
