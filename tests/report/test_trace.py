"""``trace.json``: what Perfetto needs, one track a device, and nothing that overlaps."""

import pytest

from fedge.report.record import Record
from fedge.report.trace import trace, write_trace
from tests.report.made import DEVICES, LOST
from tests.report.tracing import check_slices, check_trace


@pytest.fixture(scope="module")
def events(finished):
    return trace(Record(finished))["traceEvents"]


def test_a_track_for_each_device_and_the_server(events):
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == dict(enumerate(["server", *DEVICES], start=1))


def test_a_slice_for_each_answer(events, finished):
    record = Record(finished)
    slices = [e for e in events if e["ph"] == "X" and e["tid"] > 1]
    assert len(slices) == len(record.answers) == 20 * 11 - 5
    first, answer = slices[0], record.answers[0]
    assert (first["name"], first["ts"]) == ("train round 1", 0)
    assert first["dur"] == pytest.approx(1e6 * (answer.arrival - answer.began))
    assert first["args"]["bytes_up"] == answer.said["bytes_up"]
    assert sum("late" in e["args"] for e in slices) == 1


def test_slices_of_a_track_do_not_overlap(events):
    check_slices(events)
    cut = [e for e in events if "arrives_after_s" in e.get("args", {})]
    assert [(e["name"], e["args"]["late"]) for e in cut] == [("train round 3", True)]
    assert cut[0]["dur"] < 1e6 * cut[0]["args"]["arrives_after_s"]


def test_losses_picks_and_counters(events):
    lost = [e for e in events if e["ph"] == "i" and e["cat"] == "lost"]
    assert sorted(e["name"] for e in lost) == sorted(f"lost: {cause}" for cause in LOST.values())
    assert len([e for e in events if e["ph"] == "i" and e["cat"] == "picked"]) == 40
    accuracy = [e["args"]["accuracy"] for e in events if e["ph"] == "C" and e["name"] == "accuracy"]
    assert len(accuracy) == 11
    assert accuracy == sorted(accuracy)


@pytest.mark.parametrize("status", ["done", "failed", "interrupted", "infeasible", "running"])
def test_the_file(again, status):
    path = again(status=status)
    written = write_trace(path)
    assert written == path / "trace.json"
    document = check_trace(written)
    assert document["otherData"] == {"run": path.name, "status": status, "time": "emulated"}


def test_a_resumed_run(again):
    """It says again what it had said after its last checkpoint."""
    path = again()
    once = check_trace(write_trace(path))["traceEvents"]
    kept = (path / "events.jsonl").read_text()
    (path / "events.jsonl").write_text(kept + kept)
    assert check_trace(write_trace(path))["traceEvents"] == once


@pytest.mark.parametrize("gone", ["events.jsonl", "metrics.jsonl", "summary.json"])
def test_a_run_of_which_little_is_left(again, gone):
    path = again()
    (path / gone).unlink()
    check_trace(write_trace(path))
