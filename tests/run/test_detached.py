"""Runs seen and ended from outside: rosters, logs, ``down``, and the pipe between the two sides of ``up -d``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fedge.emulation import process
from fedge.errors import ConfigError, FedgeError, InfeasibleError, MissingError
from fedge.report.snapshot import DeviceAt, Snapshot
from fedge.run import down as ending
from fedge.run.detached import Herald, _listen
from fedge.run.down import down, launcher_of
from fedge.run.folder import RunFolder, keep_beside
from fedge.run.logs import Reader, follow, read
from fedge.run.roster import entries, find, look, require_live, sources

GONE = 1 << 22  # no pid is as high


def made(parent, name, status=None, pid=None, started=1, snapshot=True, **left):
    folder = RunFolder(parent / name)
    (folder.path / "devices").mkdir(parents=True)
    (folder.path / "checkpoints").mkdir()
    (folder.path / "resolved.yaml").touch()
    if status is not None:
        folder.write_json("summary.json", {"run": str(folder.path), "status": status})
    if pid is not None:
        record = {"pid": pid, "started": started, "scratch": str(parent / "none"), "groups": None, **left}
        folder.write_json("launcher.json", record)
    if snapshot:
        devices = (DeviceAt("d0", "computing"), DeviceAt("d1", "lost"))
        at = Snapshot(str(folder.path), "clinic", time.time() - 5, 60.0, "rounds", "train", 0, 1, devices=devices)
        keep_beside(folder.file("progress.json"), at.to_json())
    return folder


@pytest.fixture
def sleeper():
    """A process that ends by the signals that it is told to, as a launcher would."""
    started = []

    def start(*ignored):
        names = ", ".join(f"signal.{name}" for name in ignored)
        program = (
            f"import signal, sys, time\nfor number in [{names}]: signal.signal(number, signal.SIG_IGN)\n"
            "print('up', flush=True)\ntime.sleep(60)"
        )
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert child.stdout.readline() == b"up\n"
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        child.stdout.close()


# -- rosters -----------------------------------------------------------------------------------------------------------


def test_a_run_is_running_exactly_while_its_launcher_is(tmp_path):
    mine = process.start_time(os.getpid())
    made(tmp_path, "1-live", "running", os.getpid(), mine)
    made(tmp_path, "2-another-has-its-pid", "running", os.getpid(), mine + 1)
    made(tmp_path, "3-killed", "running", GONE)
    made(tmp_path, "4-killed-and-swept", "running")
    made(tmp_path, "5-done", "done")
    made(tmp_path, "6-nothing-said", snapshot=False)
    made(tmp_path, "7-resumed", "interrupted", os.getpid(), mine)
    (tmp_path / "no-run").mkdir()
    found = entries(tmp_path)
    assert [entry.folder.path.name[0] for entry in found] == list("7654321"), "the newest first"
    assert {entry.folder.path.name[0]: entry.status for entry in found} == {
        "1": "running",
        "2": "killed",
        "3": "killed",
        "4": "killed",
        "5": "done",
        "6": "interrupted",
        "7": "running",
    }
    rows = {row["run"][-4:]: row for row in (entry.row() for entry in found)}
    live, done = rows["live"], rows["done"]
    assert (live["pid"], live["devices"], live["lost"], live["stage"]) == (os.getpid(), 2, 1, "train")
    assert live["wall_s"] >= 65
    assert (done["pid"], done["wall_s"]) == (None, 60.0)
    assert entries(tmp_path / "nowhere") == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x", "started": 1}', '{"pid": 4}'])
def test_records_that_say_nothing_are_as_if_they_weren_t_there(text, tmp_path):
    folder = made(tmp_path, "run", "done", snapshot=False)
    for name in ("launcher.json", "progress.json"):
        folder.file(name).write_text(text)
    entry = look(folder)
    assert (entry.status, entry.launcher, entry.snapshot) == ("done", None, None)
    assert entry.row()["federation"] is None


def test_a_run_is_found_by_path_by_name_and_by_what_fits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = made(tmp_path / "runs", "20260101-000000-clinic", "running", os.getpid(), process.start_time(os.getpid()))
    new = made(tmp_path / "runs", "20260102-000000-clinic", "done")
    where = tmp_path / "runs"
    assert find(None, where, lambda entry: True, "run").folder.path == new.path
    assert find(None, where, lambda entry: entry.live, "run").folder.path == old.path
    assert find("20260101-000000-clinic", where, lambda entry: True, "run").folder.path == old.path
    assert find(str(new.path), where, lambda entry: entry.live, "run").status == "done"
    with pytest.raises(MissingError, match=r"did you mean '20260102-000000-clinic'"):
        find("20260102-000000-klinic", where, lambda entry: True, "run")
    with pytest.raises(MissingError, match="no run under way in"):
        find(None, where, lambda entry: False, "run under way")
    with pytest.raises(FedgeError, match="is not under way: done"):
        require_live(look(new))
    assert require_live(look(old)).federation == "clinic"


# -- logs --------------------------------------------------------------------------------------------------------------


def test_logs_are_named_by_whose_they_are(tmp_path):
    folder = made(tmp_path, "run")
    folder.append_line("launcher.log", "one")
    folder.append_line("launcher.log", "two")
    folder.device_log("phone-00").write_text("a\nb\nno end")
    assert list(read(sources(folder), None)) == [
        ("launcher", "one"),
        ("launcher", "two"),
        ("phone-00", "a"),
        ("phone-00", "b"),
        ("phone-00", "no end"),
    ]
    assert list(read(sources(folder, "launcher"), 1)) == [("launcher", "two")]
    assert list(read(sources(folder, "launcher"), 0)) == []
    with pytest.raises(MissingError, match=r"no log of 'phone-0' \(did you mean 'phone-00'"):
        sources(folder, "phone-0")


def test_logs_are_followed_to_the_end_of_the_run(tmp_path):
    folder = made(tmp_path, "run")
    folder.append_line("launcher.log", "early")
    turns = iter(
        [
            lambda: folder.append_line("launcher.log", "next"),
            lambda: folder.device_log("phone-00").write_text("ha"),
            lambda: folder.device_log("phone-00").write_text("half\nrest"),
        ]
    )
    alive = iter([True, True, True, False])
    lines = list(follow(lambda: sources(folder), 5, lambda: next(alive), lambda seconds: next(turns)()))
    assert lines == [("launcher", "early"), ("launcher", "next"), ("phone-00", "half"), ("phone-00", "rest")]


def test_a_log_that_is_not_there_has_no_lines(tmp_path):
    assert Reader(tmp_path / "none").tail(None) == []


# -- down --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ignored", "how"),
    [((), "ended"), (("SIGINT",), "terminated"), (("SIGINT", "SIGTERM"), "killed")],
)
def test_a_launcher_is_asked_then_told_then_killed(ignored, how, tmp_path, sleeper, monkeypatch):
    monkeypatch.setattr(ending, "_TOLD", 0.1)
    child = sleeper(*ignored)
    scratch = tmp_path / "fedge-run-x"
    scratch.mkdir()
    folder = made(tmp_path, "run", "running", child.pid, process.start_time(child.pid), scratch=str(scratch))
    said = []
    patience = 5.0 if not ignored else 0.1
    assert down([folder], patience, said.append) == [{"run": str(folder.path), "how": how, "status": "interrupted"}]
    assert len(said) == 1 + len(ignored)
    assert (
        child.wait(timeout=5) == -{"ended": signal.SIGINT, "terminated": signal.SIGTERM, "killed": signal.SIGKILL}[how]
    )
    assert not scratch.exists()
    assert launcher_of(folder) is None
    assert look(folder).status == "interrupted"


def test_whoever_has_the_pid_of_a_launcher_that_is_gone_is_left_alone(tmp_path, sleeper):
    child = sleeper()
    folder = made(tmp_path, "run", "running", child.pid, process.start_time(child.pid) + 1)
    assert down([folder], 5.0, lambda line: None)[0]["how"] == "cleared"
    assert child.poll() is None
    assert not folder.file("launcher.json").exists()


def test_what_had_ended_keeps_what_it_said(tmp_path):
    folder = made(tmp_path, "run", "done", GONE)
    assert down([folder], 5.0, lambda line: None) == [{"run": str(folder.path), "how": "cleared", "status": "done"}]


# -- the pipe ----------------------------------------------------------------------------------------------------------


def heard(told, error=None):
    """What the foreground makes of what a herald tells."""
    ours, theirs = os.pipe()
    before = signal.getsignal(signal.SIGINT)
    try:
        with Herald(theirs) as herald:
            told(herald)
            if error is not None:
                raise error
    except FedgeError:
        pass
    finally:
        signal.signal(signal.SIGINT, before)
    said = []
    with os.fdopen(ours, "rb") as pipe:
        try:
            return _listen(map(json.loads, pipe), said.append), said
        except FedgeError as failure:
            return failure, said


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr("fedge.run.detached._print_to", lambda log: None)


def at(phase):
    return Snapshot("runs/x", "clinic", at=0.0, elapsed_s=0.0, phase=phase)


def test_the_foreground_hears_lines_and_then_the_folder(quiet):
    def run(herald):
        herald.say("data: reading")
        herald.see(at("preparing"))
        herald.see(at("planning"))
        herald.say("plan: tracing")
        herald.see(at("baselines"))
        herald.say("nobody listens any more")
        herald.see(at("ended"))

    assert heard(run) == ("runs/x", ["data: reading", "plan: tracing"])


@pytest.mark.parametrize(
    "error",
    [
        InfeasibleError("nobody can afford it", hint="fedge plan shows"),
        FedgeError("full", hint=None),
        ConfigError("a.yaml:1:2: bad (good)"),
    ],
)
def test_the_foreground_fails_as_the_run_did(quiet, error):
    failure, _ = heard(lambda herald: herald.see(at("planning")), error)
    assert type(failure) is type(error)
    assert str(failure) == str(error)


def test_a_run_with_nothing_left_to_do_is_no_failure(quiet):
    assert heard(lambda herald: (herald.see(at("preparing")), herald.see(at("ended"))))[0] == "runs/x"


def test_a_run_that_ends_without_a_word(quiet):
    assert _listen(iter([{"said": "one"}, {"folder": "runs/x"}]), lambda line: None) is None


def test_a_foreground_that_is_gone_changes_nothing(quiet):
    ours, theirs = os.pipe()
    os.close(ours)
    before = signal.getsignal(signal.SIGINT)
    try:
        with Herald(theirs) as herald:
            herald.say("into the void")
            herald.see(at("planning"))
            herald.see(at("rounds"))
    finally:
        signal.signal(signal.SIGINT, before)
