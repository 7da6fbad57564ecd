"""``trace.json``: what Perfetto needs, one track a device, and nothing that overlaps."""

import json
from itertools import pairwise

import pytest

from fedge.report.record import Record
from fedge.report.trace import trace, write_trace
from tests.report.made import DEVICES, LOST


@pytest.fixture(scope="module")
def events(finished):
    return trace(Record(finished))["traceEvents"]


def test_a_track_for_each_device_and_the_server(events):
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == dict(enumerate(["server", *DEVICES]))


def test_a_slice_for_each_answer(events, finished):
    record = Record(finished)
    slices = [e for e in events if e["ph"] == "X" and e["tid"]]
    assert len(slices) == len(record.answers) == 20 * 11 - 5
    first, answer = slices[0], record.answers[0]
    assert (first["name"], first["ts"]) == ("train round 1", 0)
    assert first["dur"] == pytest.approx(1e6 * (answer.arrival - answer.began))
    assert first["args"]["bytes_up"] == answer.said["bytes_up"]
    assert sum("late" in e["args"] for e in slices) == 1


def test_slices_of_a_track_do_not_overlap(events):
    for track in range(len(DEVICES) + 1):
        mine = sorted((e for e in events if e["ph"] == "X" and e["tid"] == track), key=lambda e: e["ts"])
        for before, after in pairwise(mine):
            if "late" not in before["args"]:
                assert before["ts"] + before["dur"] <= after["ts"] + 0.01


def test_losses_picks_and_counters(events):
    lost = [e for e in events if e["ph"] == "i" and e["cat"] == "lost"]
    assert sorted(e["name"] for e in lost) == sorted(f"lost: {cause}" for cause in LOST.values())
    assert len([e for e in events if e["ph"] == "i" and e["cat"] == "picked"]) == 40
    accuracy = [e["args"]["accuracy"] for e in events if e["ph"] == "C" and e["name"] == "accuracy"]
    assert len(accuracy) == 11
    assert accuracy == sorted(accuracy)


@pytest.mark.parametrize("status", ["done", "failed", "running"])
def test_the_file(again, status):
    path = again(status=status)
    written = write_trace(path)
    assert written == path / "trace.json"
    document = json.loads(written.read_text())
    assert document["otherData"] == {"run": path.name, "status": status, "time": "emulated"}
    for event in document["traceEvents"]:
        assert {"ph", "name", "pid"} <= set(event)
        assert event.get("ts", 0) >= 0
        assert event.get("dur", 0) >= 0
