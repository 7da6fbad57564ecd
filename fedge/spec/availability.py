"""When a group's devices can be reached: a share of rounds, day and night, churn, a recording, joining and leaving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import model_validator

from fedge import units
from fedge.errors import ConfigError
from fedge.spec.source import Source, beside
from fedge.spec.trace import read_presence
from fedge.spec.values import NonzeroShare, Seconds, Section, Share, Text, Timeout, key


class DayNight(Section):
    """There for a time and away for a time, again and again."""

    on: Timeout = key("how long a device is there, such as 10h")
    off: Timeout = key("how long it is away then, such as 14h")
    start: Seconds | None = key("when its first day begins; each device has a moment of its own by default", None)


class Coming(Section):
    """Stays and absences of random length."""

    stay: Timeout = key("how long a device stays in the mean, such as 2h")
    away: Timeout = key("how long it is away in the mean, such as 30min")


class Availability(Section):
    """When a device can be reached: what is given has to hold together."""

    share: NonzeroShare = key("share of rounds in which each can be reached, above 0", 1.0)
    cycle: DayNight | None = key("day and night in emulated time: {on: 10h, off: 14h}", None)
    churn: Coming | None = key("coming and going at random: {stay: 2h, away: 30min} in the mean", None)
    trace: Text | None = key("a csv of seconds and 1 (there) or 0 (away), again and again", None)
    joins: Seconds = key("the second of emulated time from which on a device is there, such as 10min", 0.0)
    leaves: Timeout | None = key("the second of emulated time at which it leaves for good; never by default", None)
    drops: Share = key("share of its turns in which a device goes away on the way", 0.0)

    @model_validator(mode="before")
    @classmethod
    def _from_share(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            return given
        return {"share": units.parse_share(given, zero=False)}


@dataclass(frozen=True)
class PresenceSpec:
    """A device's availability beyond a share of rounds; seconds of emulated time, see ``Availability``."""

    joins: float = 0.0
    leaves: float | None = None
    drops: float = 0.0
    cycle: tuple[float, float, float | None] | None = None
    churn: tuple[float, float] | None = None
    file: str | None = None
    trace: tuple[tuple[float, ...], tuple[bool, ...], float] | None = None


def presence_of(told: Availability, at: str, source: Source, folder: Path) -> PresenceSpec | None:
    """What is told, its recording read; None with the mistake reported."""
    if told.leaves is not None and told.leaves <= told.joins:
        source.report(f"{at}.leaves", "it would leave before it joins", hint=f"more than {told.joins:g}s")
        return None
    steps = None
    if told.trace is not None:
        try:
            steps = read_presence(beside(folder, told.trace))
        except ConfigError as error:
            source.report_of(f"{at}.trace", error)
            return None
    return PresenceSpec(
        told.joins,
        told.leaves,
        told.drops,
        None if told.cycle is None else (told.cycle.on, told.cycle.off, told.cycle.start),
        None if told.churn is None else (told.churn.stay, told.churn.away),
        None if steps is None else str(beside(folder, told.trace or "")),
        steps,
    )


def write_availability(share: float, presence: PresenceSpec) -> Any:
    """As YAML would hold it: a share alone where there is nothing else."""
    if presence == PresenceSpec():
        return units.format_share(share)

    def seconds(value: float | None) -> str | None:
        return None if value is None else units.format_seconds(value, exact=True)

    cycle, churn = presence.cycle, presence.churn
    told = {
        "share": units.format_share(share),
        "cycle": None if cycle is None else dict(zip(("on", "off", "start"), map(seconds, cycle), strict=True)),
        "churn": None if churn is None else dict(zip(("stay", "away"), map(seconds, churn), strict=True)),
        "trace": presence.file,
        "joins": seconds(presence.joins),
        "leaves": seconds(presence.leaves),
        "drops": units.format_share(presence.drops),
    }
    return {name: value for name, value in told.items() if value is not None}
