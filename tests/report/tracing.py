"""What a Chrome trace must be for Perfetto to open it whole (Google, "Trace Event Format", 2016)."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

#: Kind of event -> the keys that it must have, and those that it may have besides.
KEYS = {
    "X": ({"name", "cat", "ph", "ts", "dur", "pid", "tid"}, {"args"}),
    "i": ({"name", "cat", "ph", "ts", "pid", "tid", "s"}, {"args"}),
    "C": ({"name", "ph", "ts", "pid", "args"}, {"tid"}),
    "M": ({"name", "ph", "pid", "args"}, {"tid"}),
}
METADATA = {"process_name": ("name", str), "thread_name": ("name", str), "thread_sort_index": ("sort_index", int)}


def check_trace(path: Path) -> dict[str, Any]:
    """Read a trace and hold every event against the format."""
    document = json.loads(path.read_text(), parse_constant=lambda word: 1 / 0)
    assert set(document) == {"displayTimeUnit", "otherData", "traceEvents"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    events = document["traceEvents"]
    for event in events:
        _check_event(event)
    named = [e["tid"] for e in events if e["name"] == "thread_name"]
    assert len(set(named)) == len(named)
    assert {e["tid"] for e in events if e["ph"] in "Xi"} <= set(named)
    check_slices(events)
    return document


def _check_event(event: dict[str, Any]) -> None:
    must, may = KEYS[event["ph"]]
    assert must <= set(event) <= must | may, event
    assert isinstance(event["name"], str)
    assert event["name"]
    for whole in ("pid", "tid"):
        assert type(event.get(whole, 1)) is int
        assert event.get(whole, 1) > 0
    for time in ("ts", "dur"):
        assert isinstance(event.get(time, 0), Real)
        assert event.get(time, 0) >= 0
    if event["ph"] == "i":
        assert event["s"] in ("g", "p", "t")
    if event["ph"] == "C":
        assert event["args"]
        assert all(isinstance(value, Real) for value in event["args"].values())
    if event["ph"] == "M":
        key, kind = METADATA[event["name"]]
        assert type(event["args"][key]) is kind


def check_slices(events: list[dict[str, Any]]) -> None:
    """Slices of a track follow each other: Perfetto drops one that begins within another and ends after it."""
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["tid"]].append(event)
    for slices in tracks.values():
        slices.sort(key=lambda event: event["ts"])
        for before, after in pairwise(slices):
            assert round(before["ts"] + before["dur"], 3) <= after["ts"], (before, after)
