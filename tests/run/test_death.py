"""The launcher dies in the middle of what is hard to take up again: sums under masks, late answers, a detached run."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from fedge.run.checkpoint import Checkpoint
from fedge.run.folder import RunFolder
from tests.run.conftest import stage
from tests.run.test_processes import calm, command, events, gone, only_run  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture(autouse=True)
def torch_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))  # no leftover of ours


def rounds(folder) -> int:
    return max(
        (line["round"] + 1 for line in folder.read_lines("metrics.jsonl") if line["round"] is not None), default=0
    )


def until(true, seconds=120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def asked(folder, round: int) -> bool:
    """Whether a round has begun and has not ended."""
    told = [event for event in folder.read_lines("events.jsonl") if event["event"] == "round"]
    return any(event["round"] == round for event in told) and rounds(folder) <= round


def test_in_the_middle_of_a_sum_under_masks(federation, inline, command, tmp_path):  # noqa: F811
    """The device strikes while its work is asked for: keys and shares have been told, no masked sum has."""
    mark = tmp_path / "struck"
    under = {"secure_aggregation": "{threshold: 60%}"}
    expected = calm(inline, federation(stage("Struck", 3, **under)), tmp_path)
    path = federation(stage("Struck", 3, how="launcher", once=f"'{mark}'", **under))
    child = command("up", path, "--runs", tmp_path / "runs", wait=False)
    mark.with_name("struck.launcher").write_text(str(child.pid))
    child.communicate(timeout=240)
    assert child.returncode == -signal.SIGKILL
    assert mark.exists()
    assert gone(str(tmp_path / "t"))
    assert Checkpoint.load(only_run(tmp_path) / "checkpoints").round == 1
    code, out, err = command("up", "--resume", only_run(tmp_path), "--json")
    assert code == 0, err
    assert json.loads(out)["model_sha256"] == expected


@pytest.mark.parametrize(("method", "about"), [("fedbuff", {"buffer": 2}), ("fedasync", {})])
def test_between_answers_that_come_late(method, about, federation, inline, command, tmp_path):  # noqa: F811
    text = f"  - train: {{method: {method}, inner: fedavg, rounds: 80, steps: 2, batch: 8"
    text += "".join(f", {name}: {value}" for name, value in about.items()) + "}"
    path = federation(text, restart=3, heartbeat=20)
    expected = calm(inline, path, tmp_path)
    words = ["up", path, "--runs", tmp_path / "runs"]
    for dies_in in (3, 7):
        child = command(*words, wait=False)
        until(lambda: (tmp_path / "runs").is_dir() and any((tmp_path / "runs").glob("*/resolved.yaml")))
        folder = RunFolder(only_run(tmp_path))
        # rounds that wait for nobody are over before one can look: any round of the first many will do
        until(lambda: rounds(folder) >= dies_in or child.poll() is not None)  # noqa: B023
        child.kill()
        child.communicate(timeout=60)
        assert child.returncode == -signal.SIGKILL, "it was still at work"
        assert gone(str(tmp_path / "t"))
        assert Checkpoint.load(folder.file("checkpoints")).kept, "late answers lie in the checkpoint"
        words = ["up", "--resume", folder.path]
    code, out, err = command(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["model_sha256"] == expected
    lines = [(line["round"], line["device"]) for line in folder.read_lines("metrics.jsonl")]
    assert len(lines) == len(set(lines)), "nothing is recorded twice"


def test_of_a_detached_run(federation, inline, command, tmp_path):  # noqa: F811
    path = federation(stage("Chats", 6), heartbeat=20)
    expected = calm(inline, path, tmp_path)
    runs = tmp_path / "runs"
    code, out, err = command("up", "-d", path, "--runs", runs, "--json")
    assert code == 0, err
    folder = RunFolder(only_run(tmp_path))
    until(lambda: asked(folder, 2))
    os.kill(json.loads(out)["pid"], signal.SIGKILL)
    assert gone(str(tmp_path / "t"))
    code, out, _ = command("ps", "--runs", runs, "--json")
    assert [row["status"] for row in json.loads(out)["ps"]] == ["killed"]
    code, out, err = command("up", "-d", "--resume", folder.path, "--json")
    assert code == 0, err
    until(lambda: not folder.file("launcher.json").exists() and gone(str(tmp_path / "t")))
    summary = folder.read_json("summary.json")
    assert (summary["status"], summary["model_sha256"]) == ("done", expected)
