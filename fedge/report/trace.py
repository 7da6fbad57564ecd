"""``trace.json``: a run in emulated time, in the Chrome trace format that Perfetto opens. One track a device.

The format is that of "Trace Event Format" (Google, 2016) as Perfetto reads it: microseconds; slices of one track follow
each other or lie within each other; thread 0 is the idle one and so nobody's.
"""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedge.report.files import write_beside
from fedge.report.record import Answer, Record
from fedge.report.words import sort_of, with_variant

_PID = 1
_SERVER = 1


def write_trace(run: Path | Record) -> Path:
    """Write a run's ``trace.json`` from what its folder says; returns the file's path."""
    record = run if isinstance(run, Record) else Record(run)
    text = json.dumps(trace(record), separators=(",", ":"), allow_nan=False)
    return write_beside(record.path / "trace.json", text + "\n")


def trace(record: Record) -> dict[str, Any]:
    """The document: rounds on the server's track, answers and losses on the devices', figures as counters."""
    tracks = {device: number for number, device in enumerate(record.devices, start=_SERVER + 1)}
    events = _names(record, tracks) + _rounds(record)
    events += _answers(record, tracks)
    for happening in (*record.losses, *record.picks):
        kind = str(happening.said.get("event"))
        what = sort_of(happening) if kind == "lost" else with_variant(*map(happening.said.get, ("method", "variant")))
        events.append(
            {
                "ph": "i",
                "s": "t",
                "name": f"{kind}: {happening.said.get('cause') if kind == 'lost' else what}",
                "cat": kind,
                "pid": _PID,
                "tid": tracks[happening.device],
                "ts": _micro(happening.virtual_s),
                "args": {"stage": happening.said.get("stage"), "round": happening.round, "what": what}
                | _told(happening.said, ("reason", "phase", "peak", "cap", "predicted_peak", "detail")),
            }
        )
    return {
        "displayTimeUnit": "ms",
        "otherData": {"run": record.path.name, "status": record.status, "time": "emulated"},
        "traceEvents": events + _counters(record),
    }


def _names(record: Record, tracks: dict[str, int]) -> list[dict[str, Any]]:
    named = [{"ph": "M", "pid": _PID, "name": "process_name", "args": {"name": f"{record.name} (emulated time)"}}]
    for name, number in {"server": _SERVER, **tracks}.items():
        named.append({"ph": "M", "pid": _PID, "tid": number, "name": "thread_name", "args": {"name": name}})
        named.append(
            {"ph": "M", "pid": _PID, "tid": number, "name": "thread_sort_index", "args": {"sort_index": number}}
        )
    return named


def _rounds(record: Record) -> list[dict[str, Any]]:
    return [
        _slice(f"{stage.name} round {number + 1}", stage.title, _SERVER, start, end, {"method": stage.method})
        for stage in record.stages
        for number, (start, end) in sorted(stage.rounds.items())
    ]


def _answers(record: Record, tracks: dict[str, int]) -> list[dict[str, Any]]:
    """Each device's answers in order. One that comes so late that the next has begun is cut there and says so."""
    own: dict[str, list[Answer]] = defaultdict(list)
    for answer in record.answers:
        own[answer.device].append(answer)
    drawn = []
    for device, answers in own.items():
        slices = sorted((_answer(answer, tracks[device]) for answer in answers), key=lambda event: float(event["ts"]))
        for one, following in pairwise(slices):
            room = round(following["ts"] - one["ts"], 3)
            if one["dur"] > room:
                one["args"]["arrives_after_s"] = round(one["dur"] / 1e6, 6)
                one["dur"] = room
        drawn += slices
    return drawn


def _answer(answer: Answer, track: int) -> dict[str, Any]:
    said = answer.said
    told = _told(said, ("method", "bytes_down", "bytes_up", "peak_memory", "counts"))
    told |= {"late": True} if answer.late else {}
    told |= {"host_seconds": said["seconds"]} if said.get("seconds") else {}
    name = f"{said.get('stage')} round {answer.round + 1}"
    return _slice(name, str(said.get("method") or ""), track, answer.began, answer.arrival, told)


def _slice(name: str, kind: str, track: int, start: float, end: float, told: dict[str, Any]) -> dict[str, Any]:
    began = _micro(start)
    place = {"pid": _PID, "tid": track, "ts": began, "dur": max(0.0, round(_micro(end) - began, 3))}
    return {"ph": "X", "name": name, "cat": kind, **place, "args": told}


def _counters(record: Record) -> list[dict[str, Any]]:
    counted = [(name, test.virtual_s, value) for test in record.tests for name, value in test.metrics.items()]
    counted += [("MiB sent", test.virtual_s, round(test.bytes_sent / 2**20, 3)) for test in record.tests]
    return [
        {"ph": "C", "name": name, "pid": _PID, "tid": _SERVER, "ts": _micro(at), "args": {name: value}}
        for name, at, value in counted
    ]


def _told(said: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: said[name] for name in names if said.get(name) not in (None, "", {})}


def _micro(seconds: float) -> float:
    return round(1e6 * seconds, 3)
