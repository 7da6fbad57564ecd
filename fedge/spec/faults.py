"""``faults``: what happens to devices because the file asks for it, by schedule, by chance, or both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fedge import units
from fedge.errors import nearest
from fedge.spec.device import DeviceSpec
from fedge.spec.source import Source, describe
from fedge.spec.stage import StageSpec
from fedge.spec.values import Check, Section, Share, Timeout, integer, key, number, read, whole
from fedge.spec.words import guess

_RANGE = r"\s*(\d{1,7})\s*(?:-\s*(\d{1,7})\s*)?"


def _names(given: object) -> tuple[str, ...]:
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, (list, tuple)) or not found or not all(isinstance(name, str) for name in found):
        raise ValueError(f"expected a device, a group, or a list of them, got {describe(given)}")
    return tuple(found)


def _stage(given: object) -> str | int:
    if isinstance(given, str):
        return given
    return whole(given, least=0)


def _rounds(given: object) -> tuple[tuple[int, int], ...]:
    """Ranges of rounds, counted from 1 as a run tells them."""
    found = []
    for item in given if isinstance(given, (list, tuple)) else [given]:
        text = str(item) if isinstance(item, int) and not isinstance(item, bool) else item
        match = re.fullmatch(_RANGE, text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"expected a round, rounds as 2-4, or a list of them, got {describe(item)}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last:
            raise ValueError(f"{text}: rounds count from 1, and the first comes first")
        found.append((first, last))
    if not found:
        raise ValueError("no rounds; such as 2, 2-4 or [2, 5]")
    return tuple(found)


def _write_rounds(ranges: tuple[tuple[int, int], ...]) -> Any:
    found = [first if first == last else f"{first}-{last}" for first, last in ranges]
    return found[0] if len(found) == 1 else found


def _jump(given: object) -> float:
    if isinstance(given, str) and given.strip().startswith("-"):
        return -units.parse_seconds(given.strip()[1:].strip(), zero=False)
    return units.parse_seconds(given, zero=False)


def _write_jump(value: float) -> str:
    return ("-" if value < 0 else "") + units.format_seconds(abs(value), exact=True)


_NAMES = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
_ROUND = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^\s*\d+\s*(-\s*\d+)?\s*$"}]}


class When(Section):
    """Whom a fault strikes, and when: those keys that every fault takes."""

    devices: Annotated[tuple[str, ...], Check(_names, _NAMES, list)] | None = key(
        "the devices or groups that it may strike; all by default", None
    )
    stage: Annotated[str | int, Check(_stage, {"type": ["string", "integer"]})] | None = key(
        "the stage by its word, or by its number from 0; all by default", None
    )
    rounds: (
        Annotated[
            tuple[tuple[int, int], ...],
            Check(_rounds, {"anyOf": [_ROUND, {"type": "array", "items": _ROUND}]}, _write_rounds),
        ]
        | None
    ) = key("the rounds in which it may strike, from 1, such as 3, 2-4 or [2, 5]; all by default", None)
    probability: Share | None = key("by chance: how likely it strikes a device in a round, such as 5%", None)
    turn: Annotated[int, integer(1, 1000)] | None = key(
        "the turn of the round's conversation that it strikes, from 1; drawn by the seed where there are several", None
    )


class Slow(When):
    """The device computes more slowly."""

    factor: Annotated[float, number(1, 1e6, above=True)] = key("how many times longer its work takes", 4.0)


class Partition(When):
    """The device can't be reached for a while; what it has to say comes afterwards."""

    for_: Timeout = key("for how long, in the devices' time, such as 30s", 30.0, alias="for")


class ClockJump(When):
    """The device's clock jumps."""

    by: Annotated[float, Check(_jump, {"type": "string", "examples": ["1h", "-30s"]}, _write_jump)] = key(
        "by how much, such as 1h or -30s", 3600.0
    )


#: Every fault that there is: its word, its keys, and what it is.
KINDS: dict[str, tuple[type[When], str]] = {
    "crash": (When, "the device's process gets signal 9; the device is back in its next round"),
    "hang": (When, "the device's process stops, and is found by its heartbeat"),
    "slow": (Slow, "the device's work takes longer"),
    "partition": (Partition, "the device's frames are held back for a time"),
    "corrupt": (When, "a bit of the device's answer flips on the way"),
    "out_of_memory": (When, "the device fills its memory up to its wall"),
    "disk_full": (When, "the device can't write a byte"),
    "clock_jump": (ClockJump, "the clock of the device's process jumps"),
}


@dataclass(frozen=True)
class FaultSpec:
    """One fault. devices: names, sorted. stages: by number. rounds: ranges from 1, None for all; probability: within
    those. amount: the factor of ``slow``, the seconds of ``partition`` and ``clock_jump``."""

    kind: str
    devices: tuple[str, ...]
    stages: tuple[int, ...]
    rounds: tuple[tuple[int, int], ...] | None
    probability: float
    turn: int | None
    amount: float
    written: tuple[tuple[str, Any], ...] = ()


def read_faults(
    given: object, devices: Sequence[DeviceSpec], stages: Sequence[StageSpec], source: Source
) -> tuple[FaultSpec, ...]:
    """The faults of a file; mistakes go to ``source.problems``. Without devices or stages (they have mistakes of their
    own) what names one is not checked."""
    if given is None:
        return ()
    if not isinstance(given, list):
        hint = "such as `- crash: {devices: phone, probability: 5%}`"
        source.report("faults", f"expected a list, got {describe(given)}", hint=hint)
        return ()
    found = [_read_fault(item, f"faults.{index}", devices, stages, source) for index, item in enumerate(given)]
    return tuple(fault for fault in found if fault is not None)


def _read_fault(
    item: object, at: str, devices: Sequence[DeviceSpec], stages: Sequence[StageSpec], source: Source
) -> FaultSpec | None:
    if not isinstance(item, Mapping) or len(item) != 1:
        got = ", ".join(item) if isinstance(item, Mapping) and item else describe(item)
        source.report(at, f"expected one fault, got {got}", hint=f"one of {', '.join(KINDS)}, and its keys below it")
        return None
    kind, body = next(iter(item.items()))
    if kind not in KINDS:
        source.report(f"{at}.{kind}", "unknown fault", hint=guess(kind, KINDS).hint or f"known: {', '.join(KINDS)}")
        return None
    at = f"{at}.{kind}"
    before = len(source.problems)
    when = read(KINDS[kind][0], body, at, source)
    if when is None:
        return None
    if when.rounds is None and when.probability is None:
        hint = "such as rounds: 3, or probability: 5%"
        source.report(at, "says neither in which rounds it strikes nor how likely", hint=hint)
    names = _devices(when, at, devices, source) if devices else ()
    which = _stages(when, at, stages, source) if stages else ()
    if len(source.problems) > before:
        return None
    amount = next((getattr(when, name) for name in ("factor", "for_", "by") if hasattr(when, name)), 0.0)
    chance = 1.0 if when.probability is None else when.probability
    return FaultSpec(kind, names, which, when.rounds, chance, when.turn, float(amount), _written(when))


def _written(when: When) -> tuple[tuple[str, Any], ...]:
    """Its keys as YAML holds them, those left out that say nothing."""
    plain = when.model_dump(by_alias=True)
    return tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in plain.items() if v is not None)


def _devices(when: When, at: str, devices: Sequence[DeviceSpec], source: Source) -> tuple[str, ...]:
    if when.devices is None:
        return tuple(sorted(device.name for device in devices))
    found: set[str] = set()
    listed = f"{at}.devices.0" in source.places
    for index, name in enumerate(when.devices):
        meant = {device.name for device in devices if name in (device.name, device.group)}
        if not meant:
            known = [*dict.fromkeys(device.group for device in devices), *(device.name for device in devices)]
            groups = ", ".join(dict.fromkeys(device.group for device in devices))
            hint = nearest(name, known) or f"the groups are {groups}"
            place = f"{at}.devices.{index}" if listed else f"{at}.devices"
            source.report(place, f"no device and no group '{name}'", hint=hint)
        found |= meant
    return tuple(sorted(found))


def _stages(when: When, at: str, stages: Sequence[StageSpec], source: Source) -> tuple[int, ...]:
    words = list(dict.fromkeys(stage.stage for stage in stages))
    which = [stage for stage in stages if when.stage is None or when.stage in (stage.stage, stage.index)]
    if not which:
        known = f"there are {', '.join(words)}, or 0 to {len(stages) - 1}"
        hint = (nearest(when.stage, words) if isinstance(when.stage, str) else None) or known
        source.report(f"{at}.stage", f"no stage {when.stage!r} in this federation", hint=hint)
        return ()
    last = max(stage.rounds for stage in which)
    for _, end in when.rounds or ():
        if end > last:
            told = which[0].stage if len(which) == 1 else "every stage that is meant"
            source.report(f"{at}.rounds", f"round {end} is beyond the last: {told} has at most {last}")
    return tuple(stage.index for stage in which)


def write_faults(faults: Sequence[FaultSpec]) -> list[dict[str, Any]]:
    """The faults as YAML would hold them."""
    return [
        {fault.kind: {name: list(v) if isinstance(v, tuple) else v for name, v in fault.written}} for fault in faults
    ]


def schema(definitions: Mapping[str, Any]) -> dict[str, Any]:
    """What the file's key takes, as JSON Schema; ``definitions`` has those of the sections."""
    items = [
        {
            "type": "object",
            "properties": {kind: {**definitions[section.__name__], "description": about}},
            "required": [kind],
            "additionalProperties": False,
        }
        for kind, (section, about) in KINDS.items()
    ]
    return {"type": "array", "items": {"anyOf": items}}
