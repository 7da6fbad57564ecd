"""What a user can cause: each ends in one line, the right exit code, and a folder that says the same."""

import errno
import json
import os
import tempfile

import pytest

from fedge import __main__ as command
from fedge.errors import FedgeError, InfeasibleError, MethodError
from fedge.run import folder as folders
from fedge.run.folder import RunFolder, plain, write_whole
from tests.run.conftest import sha, stage


@pytest.fixture
def fedge(capsys, tmp_path):
    def run(*words):
        code = command.run([str(word) for word in words])
        error = capsys.readouterr().err
        complaint = [line for line in error.splitlines() if line.startswith("fedge: ")]
        assert "Traceback" not in error
        return code, complaint

    return run


def summary(tmp_path):
    return json.loads((next((tmp_path / "runs").iterdir()) / "summary.json").read_text())


# -- the folder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/proc/nowhere", "{file}", "{file}/below"])
def test_a_place_where_no_folder_can_be_made(place, federation, fedge, tmp_path):
    path = federation(stage("Alone", 1))
    code, said = fedge("up", path, "--inline", "--runs", place.format(file=path))
    assert code == 2
    assert len(said) == 1
    assert "can't be made" in said[0]
    assert "--runs DIR" in said[0]


def test_a_name_that_is_taken_gets_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.time, "strftime", lambda form: "now")
    names = [RunFolder.new("x", tmp_path).path.name for _ in range(3)]
    assert names == ["now-x", "now-x-1", "now-x-2"]


def full(monkeypatch, after):
    """A disk that is full after so many files."""
    real, left = os.fsync, [after]

    def fsync(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(folders.os, "fsync", fsync)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", "old")
    full(monkeypatch, 0)
    with pytest.raises(FedgeError, match="a can't be written: No space left on device"):
        write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("after", [0, 2, 4, 6, 8])
def test_a_disk_that_fills_up_can_be_cleared_and_the_run_goes_on(
    after, federation, fedge, inline, tmp_path, monkeypatch
):
    path = federation(stage("Remembers", 2), count=2)
    with monkeypatch.context() as patch:
        full(patch, after)
        code, said = fedge("up", path, "--inline", "--runs", tmp_path / "runs")
    assert code == 1
    assert len(said) == 1
    assert "No space left on device" in said[0]
    run = next((tmp_path / "runs").iterdir())
    if (run / "resolved.yaml").exists():
        assert sha(inline(None, resume=run)) == sha(inline(path))


def test_lines_that_cannot_be_appended(tmp_path, monkeypatch):
    RunFolder(tmp_path).append("x.jsonl", {"a": 1})
    monkeypatch.setattr(folders.os, "write", lambda handle, data: len(data) - 1)
    with pytest.raises(FedgeError, match=r"x\.jsonl can't be written: No space left"):
        RunFolder(tmp_path).append("x.jsonl", {"a": 2})


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append("x.jsonl", {"a": float("nan"), "b": (1, {2})})
    (tmp_path / "x.jsonl").open("a").write('{"a": ')
    assert list(folder.read_lines("x.jsonl")) == [{"a": None, "b": [1, [2]]}]
    assert list(folder.read_lines("y.jsonl")) == []
    assert plain({"x": tmp_path}) == {"x": str(tmp_path)}


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("x"), lambda path: None])
def test_what_is_no_run_cannot_be_resumed(make, fedge, tmp_path):
    make(tmp_path / "x")
    code, said = fedge("up", "--resume", tmp_path / "x")
    assert code == 2
    assert said == [f"fedge: {tmp_path / 'x'} is not a run's folder: it has no resolved.yaml"]


# -- limits ------------------------------------------------------------------------------------------------------------


def test_no_wall_without_best_effort(federation, fedge, tmp_path):
    path = federation(stage("Alone", 1))
    code, said = fedge("up", path, "--set", "emulation.wall=none", "--runs", tmp_path / "runs")
    assert code == 4
    assert said == ["fedge: emulation.wall is none (--best-effort runs without a memory wall)"]
    assert not (tmp_path / "runs").exists()


def test_a_wall_that_this_host_lacks(federation, fedge, tmp_path, monkeypatch):
    from fedge.emulation import wall
    from fedge.errors import LimitError

    def refused():
        raise LimitError("no cgroup v2 hierarchy is mounted")

    monkeypatch.setitem(wall._FIND, "cgroup2", refused)
    code, said = fedge("up", federation(stage("Alone", 1)), "--set", "emulation.wall=cgroup2")
    assert code == 4
    assert len(said) == 1
    assert "no cgroup v2 hierarchy is mounted" in said[0]
    assert "--best-effort" in said[0]


def test_inline_says_what_is_not_enforced(federation, inline):
    run = inline(federation(stage("Alone", 1)))
    assert run.summary["limits"]["memory"] == "planner"
    assert run.summary["degraded"] == ["memory: inline has no walls"]


# -- stages that can't go on -------------------------------------------------------------------------------------------


def test_nobody_affords_anything(federation, fedge, tmp_path):
    code, said = fedge("up", federation(stage("Alone", 1), memory="1MiB"), "--inline", "--runs", tmp_path / "runs")
    assert code == 3
    assert len(said) == 1
    assert "0 of 4 devices can afford anything" in said[0]
    assert summary(tmp_path)["status"] == "infeasible"


def test_richest_is_lost_by_the_plan_and_then_nobody_is_left(federation, inline, tmp_path):
    path = federation(stage("Alone", 3, pick="richest"), memory="100KiB")
    with pytest.raises(InfeasibleError, match="0 of 4 devices can take part"):
        inline(path)
    assert summary(tmp_path)["status"] == "infeasible"
    events = list(RunFolder(next((tmp_path / "runs").iterdir())).read_lines("events.jsonl"))
    assert sum(event["event"] == "lost" and event["cause"] == "memory" for event in events) == 4


def test_a_device_that_diverges_is_lost_by_name(federation, inline, tmp_path):
    run = inline(federation(stage("Diverges", 2)))
    assert sha(run)
    lost = {line["name"]: line["lost"] for line in run.summary["devices"]}
    assert lost["phone-01"]["cause"] == "protocol"
    assert [name for name, loss in lost.items() if loss] == ["phone-01"]


def test_when_the_protocol_loses_everyone_the_run_fails(federation, inline, tmp_path):
    with pytest.raises(FedgeError, match="0 of 4 devices can take part") as failure:
        inline(federation(stage("Alone", 2, lr=1e30, optimizer="sgd"), restart=0))
    assert failure.value.exit_code == 1
    assert "lost, protocol" in str(failure.value)


def test_a_quorum_above_the_devices_is_a_mistake_of_the_file(federation, fedge):
    code, said = fedge("up", federation(stage("Alone", 1, quorum=5)), "--inline")
    assert code == 2
    assert "5 answers are needed, but 4 devices are asked" in said[0]


@pytest.mark.parametrize("quorum", ["100%", "3"])
def test_a_round_without_its_quorum_changes_nothing(quorum, federation, inline, tmp_path):
    run = inline(federation(stage("Diverges", 1, quorum=quorum)))
    events = list(RunFolder(run.folder).read_lines("events.jsonl"))
    abandoned = [event for event in events if event["event"] == "abandoned"]
    assert bool(abandoned) == (quorum == "100%")


def test_a_method_whose_client_raises(federation, fedge, tmp_path):
    code, said = fedge("up", federation(stage("Breaks", 1)), "--inline", "--runs", tmp_path / "runs")
    assert code == 1
    assert said == [
        "fedge: phone-01: method 'tests.run.methods:Breaks', client: RuntimeError: "
        "mat1 and mat2 shapes cannot be multiplied (4x3 and 5x6)"
    ]
    found = summary(tmp_path)
    assert found["status"] == "failed"
    assert found["error"] in said[0]


def test_a_method_whose_final_raises(federation, inline, monkeypatch):
    from tests.run.methods import Alone

    monkeypatch.setattr(Alone, "final", lambda self, srv, state: 1 / 0)
    with pytest.raises(MethodError, match=r"method 'tests\.run\.methods:Alone', final: ZeroDivisionError"):
        inline(federation(stage("Alone", 1)))


@pytest.mark.parametrize(
    ("pin", "said"), [("cuda:0", "do not compute on a GPU yet"), ("cpu:4095", "there is no core 4095")]
)
def test_a_place_that_cannot_be_had_stops_the_run(pin, said, fedge, tmp_path):
    path = tmp_path / "federation.yaml"
    path.write_text(
        f"model: vit-nano\ndata: digits\ndevices: {{a: {{profile: pi-4b-4g, pin: '{pin}'}}}}\n"
        "stages: [{customize: {method: head}}]\n"
    )
    code, complaint = fedge("up", path, "--runs", tmp_path / "runs", "--inline")
    assert code == 4
    assert said in complaint[0]
    assert not (tmp_path / "runs").exists()


def test_a_temporary_folder_too_deep_for_a_socket_is_told_before_anything_is_read(
    fedge, federation, tmp_path, monkeypatch
):
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    code, complaint = fedge("up", federation(stage("fedavg")), "--runs", tmp_path / "runs")
    assert code == 1
    assert len(complaint) == 1
    assert "at most 107 bytes" in complaint[0]
    assert "TMPDIR" in complaint[0]
    assert not list((tmp_path / "runs").glob("*/devices/zygote.log")), "nothing was started"
    assert not list(deep.iterdir())
