"""Real processes: any number of slots, deaths of every kind, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedge.run.folder import RunFolder
from tests.run.conftest import processes_left, sha, stage
from tools.chaos.victims import zygotes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left")]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(tmp_path):
    """Runs ``fedge`` in a process of its own, with a folder for its temporary files that must be empty afterwards."""
    temporary = tmp_path / "t"
    temporary.mkdir()
    started = []

    def run(*words, wait=True):
        environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
        child = subprocess.Popen(
            [sys.executable, "-m", "fedge", *map(str, words)],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        if not wait:
            return child
        out, err = child.communicate(timeout=240)
        assert "Traceback" not in err
        return child.returncode, out, err

    yield run
    for child in started:
        if child.poll() is None:
            child.kill()
            child.wait()
    assert gone(str(temporary)), f"processes are left: {processes_left(str(temporary))}"
    assert not list(temporary.iterdir())


def gone(mark: str, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while processes_left(mark):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def calm(inline, path, tmp_path) -> str:
    """What the same federation gives without processes; the folder of its run is put out of the way."""
    found = sha(inline(path))
    (tmp_path / "runs").rename(tmp_path / "calm")
    return found


def only_run(tmp_path) -> Path:
    return next((tmp_path / "runs").iterdir())


def events(folder: Path, kind: str) -> list[dict]:
    return [event for event in RunFolder(folder).read_lines("events.jsonl") if event["event"] == kind]


@pytest.mark.parametrize("slots", [1, 2])
def test_processes_at_any_number_of_slots_give_what_inline_gives(slots, federation, inline, command, tmp_path):
    path = federation(stage("Chats", 2), stage("split", 1), dropout=0.1)
    expected = calm(inline, path, tmp_path)
    code, out, err = command("up", path, "--slots", slots, "--runs", tmp_path / "runs", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["model_sha256"] == expected
    assert found["limits"]["memory"] != "planner"
    assert all(device["peak_memory"] > 0 for device in found["devices"])
    assert not (only_run(tmp_path) / "launcher.json").exists()


def test_fewer_processes_than_devices_take_them_in_turn(federation, inline, command, tmp_path):
    path = federation(stage("Chats", 2), stage("split", 1), dropout=0.1)
    expected = calm(inline, path, tmp_path)
    told = "emulation.processes=2"
    code, out, err = command("up", path, "--set", told, "--slots", 2, "--runs", tmp_path / "runs", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["model_sha256"] == expected
    assert all(device["peak_memory"] > 0 for device in found["devices"])


@pytest.mark.parametrize("how", ["kill", "stop", "zygote"])
def test_a_death_of_a_process_that_serves_several(how, federation, inline, command, tmp_path):
    mark = tmp_path / "struck"
    heartbeat = 2 if how == "stop" else 30
    expected = calm(inline, federation(stage("Struck", 3)), tmp_path)
    path = federation(stage("Struck", 3, how=how, once=f"'{mark}'"), heartbeat=heartbeat)
    told = "emulation.processes=1"
    code, out, err = command("up", path, "--set", told, "--slots", 1, "--runs", tmp_path / "runs", "--json")
    assert code == 0, err
    assert mark.exists()
    assert json.loads(out)["model_sha256"] == expected
    assert [event["device"] for event in events(only_run(tmp_path), "died")] == ["phone-01"]


@pytest.mark.parametrize("how", ["kill", "stop", "zygote", "frozen zygote"])
def test_a_death_in_the_middle_of_a_round_changes_nothing(how, federation, inline, command, tmp_path):
    mark = tmp_path / "struck"
    heartbeat = 2 if how in ("stop", "frozen zygote") else 30
    expected = calm(inline, federation(stage("Struck", 3)), tmp_path)
    path = federation(stage("Struck", 3, how=how, once=f"'{mark}'"), heartbeat=heartbeat)
    code, out, err = command("up", path, "--runs", tmp_path / "runs", "--json")
    assert code == 0, err
    assert mark.exists()
    assert json.loads(out)["model_sha256"] == expected
    died = events(only_run(tmp_path), "died")
    if "zygote" in how:
        assert {event["device"] for event in died} == {f"phone-0{i}" for i in range(4)}
        assert "the zygote died; starting another" in err
    else:
        assert [event["device"] for event in died] == ["phone-01"]
        assert died[0]["detail"] == "killed by signal 9"


def test_devices_that_wait_for_a_slot_outlive_the_zygote(federation, inline, command, tmp_path):
    """They are sent their question when another dies, before their own death is told: both go to one new process."""
    expected = calm(inline, federation(stage("Struck", 3)), tmp_path)
    path = federation(stage("Struck", 3, how="zygote", once=f"'{tmp_path / 'struck'}'"))
    code, out, err = command("up", path, "--slots", 1, "--runs", tmp_path / "runs", "--json")
    assert code == 0, err
    assert json.loads(out)["model_sha256"] == expected
    assert len(events(only_run(tmp_path), "died")) == 4


def test_a_zygote_killed_while_it_gets_ready_is_replaced(federation, inline, command, tmp_path):
    path = federation(stage("Alone", 2))
    expected = calm(inline, path, tmp_path)
    child = command("up", path, "--runs", tmp_path / "runs", "--json", wait=False)
    assert "data: reading" in child.stderr.readline()
    zygote = zygotes(child.pid)
    assert len(zygote) == 1
    zygote[0].kill()
    out, err = child.communicate(timeout=240)
    assert child.returncode == 0, err
    assert "the zygote died; starting another" in err
    assert json.loads(out)["model_sha256"] == expected


def test_a_launcher_killed_by_signal_9_is_resumed_to_the_same_model(federation, inline, command, tmp_path):
    mark = tmp_path / "struck"
    expected = calm(inline, federation(stage("Struck", 3)), tmp_path)
    path = federation(stage("Struck", 3, how="launcher", once=f"'{mark}'"))
    child = command("up", path, "--runs", tmp_path / "runs", wait=False)
    mark.with_name("struck.launcher").write_text(str(child.pid))
    child.communicate(timeout=240)
    assert child.returncode == -signal.SIGKILL
    assert gone(str(tmp_path / "t"))
    folder = only_run(tmp_path)
    left = json.loads((folder / "launcher.json").read_text())
    assert left["pid"] == child.pid
    assert Path(left["scratch"]).is_dir()
    assert Path(left["scratch"], "hub").is_socket()
    if left["groups"]:
        assert Path(left["groups"]).is_dir()
    code, out, err = command("up", "--resume", folder, "--json")
    assert code == 0, err
    assert json.loads(out)["model_sha256"] == expected
    assert "round 1/3" not in err, "what is in the checkpoint is not done again"
    assert not left["groups"] or not Path(left["groups"]).exists()


def test_one_ctrl_c_ends_the_round_and_keeps_a_checkpoint(federation, inline, command, tmp_path):
    path = federation(stage("Remembers", 40))
    child = command("up", path, "--runs", tmp_path / "runs", wait=False)
    for line in child.stderr:
        if "round 1/40" in line:
            child.send_signal(signal.SIGINT)
            break
    _, err = child.communicate(timeout=120)
    folder = only_run(tmp_path)
    assert child.returncode == 130, err
    assert err.splitlines()[-1] == f"fedge: interrupted (fedge up --resume {folder} goes on)"
    assert (folder / "checkpoints" / "run.checkpoint").is_file()
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"


def test_two_ctrl_cs_end_the_command_at_once(federation, command, tmp_path):
    path = federation(stage("Remembers", 200))
    child = command("up", path, "--runs", tmp_path / "runs", wait=False)
    for line in child.stderr:
        if "round 1/200" in line:
            child.send_signal(signal.SIGINT)
        if "stopping after this round" in line:
            child.send_signal(signal.SIGINT)
            break
    child.communicate(timeout=60)
    assert child.returncode == 130


def test_a_client_that_raises_ends_the_run_by_name(federation, command, tmp_path):
    path = federation(stage("Breaks", 2))
    code, _, err = command("up", path, "--runs", tmp_path / "runs")
    assert code == 1
    log = only_run(tmp_path) / "devices" / "phone-01.log"
    assert err.splitlines()[-1] == (
        "fedge: phone-01: method 'tests.run.methods:Breaks', client: RuntimeError: "
        f"mat1 and mat2 shapes cannot be multiplied (4x3 and 5x6) (see {log})"
    )
    assert "mat1 and mat2" in log.read_text()


def test_a_device_that_dies_too_often_is_lost_by_the_host(federation, inline, command, tmp_path):
    mark = tmp_path / "struck"
    path = federation(stage("Struck", 3, once=f"'{mark}'"), restart=0)
    code, out, err = command("up", path, "--runs", tmp_path / "runs", "--json")
    assert code == 0, err
    lost = {device["name"]: device["lost"] for device in json.loads(out)["devices"]}
    assert lost.pop("phone-01")["cause"] == "host"
    assert set(lost.values()) == {None}
    assert "phone-01 lost: host killed by signal 9" in err
