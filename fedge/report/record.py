"""What a run's folder says, put in order: stages, answers, losses, picks, tests. Nothing of it needs to be complete."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fedge.errors import FedgeError, MissingError
from fedge.report.files import Json, is_number, read_json, read_lines, read_text
from fedge.spec import load_federation
from fedge.spec.device import DeviceSpec


@dataclass(frozen=True)
class Answer:
    """One device's round: it worked from ``began`` to ``arrival`` in emulated seconds; late: after the round's end."""

    stage: int
    round: int
    device: str
    began: float
    arrival: float
    late: bool
    said: Json


@dataclass(frozen=True)
class Happening:
    """A loss, a pick or the like: what ``events.jsonl`` says of one device at one moment."""

    stage: int
    round: int
    device: str
    virtual_s: float
    said: Json


@dataclass(frozen=True)
class Tested:
    """What the model reached after a round, and the bytes that all devices had moved by then."""

    stage: int
    round: int
    virtual_s: float
    bytes_sent: int
    metrics: dict[str, float]


@dataclass
class Stage:
    """A stage as far as it got. rounds: start and end of each that began. closed: its record in ``summary.json``."""

    index: int
    name: str
    began: float
    method: str | None = None
    planned: int | None = None
    closed: Json | None = None
    rounds: dict[int, tuple[float, float]] = field(default_factory=dict)
    devices: list[Json] = field(default_factory=list)

    @property
    def ended(self) -> float:
        """Emulated seconds at the end of its last round."""
        return max((end for _, end in self.rounds.values()), default=self.began)

    @property
    def title(self) -> str:
        """'customize · lora'."""
        return f"{self.name} · {self.method}" if self.method else self.name


class Record:
    """A run's folder, read. Raises MissingError when it isn't one.

    away: rounds for which a device was not available. deaths: processes that the host lost and that were replaced.
    empty: rounds that came to nothing. walls: when each round of a stage began, in seconds since 1970.
    """

    def __init__(self, path: Path):
        self.path = path
        if not (path / "resolved.yaml").is_file():
            raise MissingError(f"{path} is not a run's folder: it has no resolved.yaml")
        self.resolved = read_text(path / "resolved.yaml")
        self.summary = read_json(path / "summary.json")
        self.host = read_json(path / "host.json")
        self.events = read_lines(path / "events.jsonl")
        self.metrics = read_lines(path / "metrics.jsonl")
        self.stages: list[Stage] = []
        self.answers: list[Answer] = []
        self.losses: list[Happening] = []
        self.picks: list[Happening] = []
        self.away: list[Happening] = []
        self.deaths: list[Happening] = []
        self.faults: list[Happening] = []
        self.empty: list[Happening] = []
        self.tests: list[Tested] = []
        self.walls: dict[tuple[int, int], float] = {}
        self._read_events()
        self._read_metrics()
        self._read_plan()

    # -- what it is --------------------------------------------------------------------------------------------------

    @cached_property
    def settings(self) -> Json:
        """``resolved.yaml``, parsed; empty when it can't be."""
        try:
            found = yaml.safe_load(self.resolved)
        except yaml.YAMLError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def name(self) -> str:
        return str(self.settings.get("name") or self.path.name)

    @property
    def status(self) -> str:
        return str(self.summary.get("status") or "unknown")

    @property
    def when(self) -> datetime | None:
        """When it began: by its first event, else by its folder's name."""
        times = [event["time"] for event in self.events if event.get("time") is not None]
        if times:
            return datetime.fromtimestamp(min(times), timezone.utc)
        stamp = re.match(r"\d{8}-\d{6}", self.path.name)
        try:
            return datetime.strptime(stamp[0], "%Y%m%d-%H%M%S") if stamp else None
        except ValueError:
            return None

    @property
    def ended(self) -> float:
        """The last emulated second that anything is known of."""
        return max((stage.ended for stage in self.stages), default=0.0)

    @cached_property
    def devices(self) -> list[str]:
        """Names in the file's order; where the file can't be read any more, those that are mentioned."""
        mentioned = {str(line["device"]) for line in (*self.events, *self.metrics) if line.get("device")}
        declared = list(self.budgets)
        return declared + sorted(mentioned - set(declared))

    @cached_property
    def budgets(self) -> dict[str, tuple[str | None, int]]:
        """Each device's profile and the bytes that its file grants."""
        return {device.name: (device.profile, device.memory) for device in self._declared}

    @cached_property
    def rates(self) -> dict[str, str]:
        """How it is known what each device sustains, and with which software."""
        return {device.name: f"{device.rates_basis}, {device.stack}" for device in self._declared}

    @cached_property
    def _declared(self) -> tuple[DeviceSpec, ...]:
        try:
            return load_federation(self.path / "resolved.yaml").devices
        except FedgeError:
            return ()

    def lost_at(self, loss: Happening) -> float:
        """Emulated seconds at which a device was lost: a late one when its round ended."""
        if loss.said.get("cause") != "deadline":
            return loss.virtual_s
        return self.stages[loss.stage].rounds.get(loss.round, (0.0, loss.virtual_s))[1]

    def measure(self) -> str | None:
        """The metric that the run is told by: accuracy where there is one, else perplexity, else loss."""
        seen = {name for test in self.tests for name in test.metrics}
        seen |= {name for stage in self.stages for name in (stage.closed or {}).get("metrics", {})}
        return next((name for name in ("accuracy", "perplexity", "loss") if name in seen), None)

    # -- putting it in order -----------------------------------------------------------------------------------------

    def _read_events(self) -> None:
        seen: set[tuple[Any, ...]] = set()
        for event in self.events:
            stage = self._stage_of(event)
            if stage is None:
                continue
            round, at, device = event.get("round") or 0, _number(event.get("virtual_s")), event.get("device")
            kind = event.get("event")
            if kind == "round":
                stage.rounds[round] = (at, at)
                if event.get("time") is not None:
                    self.walls[stage.index, round] = float(event["time"])
            # a resumed run says again what it had said after its last checkpoint
            key = (stage.index, round, device, kind, event.get("kind"))
            if key in seen and kind != "died":
                continue
            seen.add(key)
            kept = self._kept(kind)
            if kept is not None and (device is not None or kept is self.empty):
                kept.append(Happening(stage.index, round, str(device or ""), at, event))

    def _kept(self, kind: object) -> list[Happening] | None:
        """Where an event of a kind is put; None for those that nothing is told of."""
        lists = {"lost": self.losses, "picked": self.picks, "left-out": self.picks, "unavailable": self.away}
        lists |= {"fault": self.faults}
        return (lists | {"died": self.deaths, "abandoned": self.empty, "skipped": self.empty}).get(str(kind))

    def _stage_of(self, event: Json) -> Stage | None:
        """The stage that an event belongs to; two stages may have one name, and a resumed run repeats itself."""
        name, at = event.get("stage"), _number(event.get("virtual_s"))
        if not name:
            return None
        known = [stage for stage in self.stages if stage.name == name and stage.began <= at]
        if known and (event.get("round") or at == known[-1].began):
            return known[-1]
        self.stages.append(Stage(len(self.stages), name, at))
        return self.stages[-1]

    def _read_metrics(self) -> None:
        sent, free = 0, dict[tuple[int, str], float]()
        current: Stage | None = None
        for line in self.metrics:
            if "round" not in line or "device" not in line:
                continue
            if line["round"] is None:
                if current is not None and line.get("device"):
                    current.devices.append(line)
                continue
            current = self._stage_at(line) or current
            if current is None:
                continue
            round, end = line["round"], _number(line.get("virtual_s"))
            start = current.rounds.get(round, (current.ended, end))[0]
            current.rounds[round] = (start, max(start, end))
            if not line["device"]:
                figures = _figures(line)
                self.tests.append(Tested(current.index, round, end, sent, figures))
                continue
            device = str(line["device"])
            sent += int(_number(line.get("bytes_up")) + _number(line.get("bytes_down")))
            arrival = _number(line.get("arrival"), end)
            began = _number(line.get("began"), max(start, free.get((current.index, device), start)))
            free[current.index, device] = arrival
            late = arrival > end + 1e-9
            self.answers.append(Answer(current.index, round, device, min(began, arrival), arrival, late, line))

    def _stage_at(self, line: Json) -> Stage | None:
        """The stage that ended a round at this line's time; made up where no events were kept."""
        name, at = line.get("stage"), _number(line.get("virtual_s"))
        index = line.get("stage_index")
        if isinstance(index, int) and 0 <= index < len(self.stages) and self.stages[index].name == name:
            return self.stages[index]
        named = [stage for stage in self.stages if stage.name == name]
        if not named and name:
            self.stages.append(Stage(len(self.stages), name, self.ended))
            return self.stages[-1]
        return next((stage for stage in reversed(named) if stage.began < at), named[0] if named else None)

    def _read_plan(self) -> None:
        closed = self.summary.get("stages")
        given = self.settings.get("stages")
        for place, stage in enumerate(self.stages):
            if isinstance(closed, list) and place < len(closed) and isinstance(closed[place], dict):
                stage.closed = {**closed[place], "metrics": _figures(closed[place].get("metrics") or {})}
            if isinstance(given, list) and place < len(given) and isinstance(given[place], Mapping):
                body = given[place].get(stage.name)
                if isinstance(body, Mapping):
                    stage.method = str(body["method"]) if body.get("method") else None
                    stage.planned = body["rounds"] if isinstance(body.get("rounds"), int) else None
            if stage.closed:
                stage.method = stage.closed.get("method") or stage.method


def _figures(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in line.items() if is_number(value) and name not in _PLACE}


_PLACE = ("stage", "stage_index", "round", "virtual_s", "device", "rows", "time")


def _number(value: Any, otherwise: float = 0.0) -> float:
    return otherwise if value is None else float(value)
