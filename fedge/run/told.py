"""What a remote device says of itself, looked at before anything is done with it. Each raises Refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from fedge.errors import ProtocolError
from fedge.meter.spans import PHASES
from fedge.plan.choose import Choice
from fedge.run.events import Answered, Lost


class Refused(ProtocolError):
    """Something that a device said and that was not taken; ``kind``: shape, finite, round or replay."""

    def __init__(self, message: str, kind: str = "shape"):
        super().__init__(message)
        self.kind = kind


_MOST = 1 << 53
_NAMES = 256


def text_of(header: Mapping[str, Any], name: str, most: int = 4000) -> str:
    """A text of the header, cut at ``most`` characters."""
    value = header.get(name)
    if not isinstance(value, str):
        raise Refused(f"'{name}' is no text")
    return value[:most]


def count_of(header: Mapping[str, Any], name: str, least: int = 0) -> int:
    """A whole number of the header."""
    value = header.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < _MOST:
        raise Refused(f"'{name}' is no whole number of at least {least}")
    return value


def choice_of(told: Any, offers: int, banned: Collection[int], pinned: int | None) -> Choice:
    """What a device picked from a menu of ``offers``: nothing that is banned, and what is pinned where something is."""
    if not isinstance(told, dict) or not isinstance(told.get("refused", {}), dict):
        raise Refused("its choice is no choice")
    found: dict[str, int | None] = {}
    for name in ("index", "runner_up"):
        found[name] = None if told.get(name) is None else count_of(told, name)
        if (found[name] or 0) >= offers:
            raise Refused(f"it picked offer {found[name]} of {offers}")
    index = found["index"]
    if index in banned or (pinned is not None and index != pinned):
        raise Refused(f"it picked offer {index}, which it was told not to")
    refused = {}
    for key, why in list(told.get("refused", {}).items())[:offers]:
        if not str(key).isdecimal() or len(str(key)) > 6 or not isinstance(why, str):
            raise Refused("what it says of the offers that it refused can't be read")
        refused[int(key)] = why[:400]
    limit = None if told.get("limit") is None else text_of(told, "limit", 20)
    return Choice(index, text_of(told, "reason", 400), found["runner_up"], refused, limit)


def answer_of(device: str, header: Mapping[str, Any], blob: bytearray | None) -> Answered:
    """A device's answer; what is in ``blob`` is looked at where it is decoded."""
    if blob is None:
        raise Refused("its answer is empty")
    done = header.get("done")
    if not isinstance(done, bool):
        raise Refused("'done' is neither true nor false")
    stateful = None if header.get("stateful") is None else count_of(header, "stateful")
    place = count_of(header, "round"), count_of(header, "turn")
    return Answered(device, *place, blob, done, stateful, count_of(header, "peak"), _noted(header.get("noted")))


def _noted(told: Any) -> dict[str, dict[str, float]]:
    """What the device's meter noted: finite numbers by name."""
    if not isinstance(told, dict):
        raise Refused("'noted' is no mapping")
    found: dict[str, dict[str, float]] = {}
    for part in ("counts", "seconds"):
        figures = told.get(part, {})
        if not isinstance(figures, dict) or len(figures) > _NAMES:
            raise Refused(f"'noted.{part}' is no mapping")
        for name, value in figures.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise Refused(f"'noted.{part}.{name[:40]}' is no finite number", "finite")
        found[part] = {name[:80]: value for name, value in figures.items()}
    return found


def loss_of(device: str, header: Mapping[str, Any], struck: Collection[str] = ()) -> Lost:
    """How a device was lost by its own account: by 'memory', 'died' (to be started again), or to its 'host'; or by a
    'fault', if it was ``struck`` by one of that kind."""
    cause = header.get("cause")
    if cause not in ("memory", "died", "error", "fault"):
        raise Refused("it failed of nothing that there is")
    phase = header.get("phase")
    if (cause == "fault" and phase not in struck) or (cause != "fault" and phase is not None and phase not in PHASES):
        raise Refused("it failed in a phase that there isn't")
    peak = None if header.get("peak") is None else count_of(header, "peak")
    cap = None if header.get("cap") is None else count_of(header, "cap")
    told = text_of(header, "message")
    return Lost(device, "host" if cause == "error" else cause, phase, peak, cap, told)
