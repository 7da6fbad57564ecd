"""Places that can't be written: a disk that is full at one moment or another, one that is read-only, a locked folder.

The disk is a real one of some MiB, mounted for the test, which takes root.
"""

import json
import os
import subprocess
from contextlib import suppress

import pytest

from fedge import __main__ as command
from fedge.run.launch import Launch
from tests.run.conftest import sha, stage


class Disk:
    """A mounted file system; ``fill`` leaves no room on it and ``clear`` gives the room back."""

    def __init__(self, path):
        self.path = path
        self._filler = path / "filler"

    def fill(self):
        # in pieces of a page, so that not even a short file finds room
        handle = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with suppress(OSError):
            while True:
                os.write(handle, bytes(4096))
        os.close(handle)
        assert os.statvfs(self.path).f_bavail == 0

    def clear(self):
        self._filler.unlink()


def _mounted(path, options):
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "fedge-test", path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this host mounts no tmpfs: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    place = tmp_path / "disk"
    _mounted(place, "size=8m")
    yield Disk(place)
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def fedge(capsys):
    """Runs a command; its exit code, and the one line that it ends with."""

    def run(*words):
        code = command.run([str(word) for word in words])
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert "not foreseen" not in error
        said = [line for line in error.splitlines() if line.startswith("fedge: ")]
        assert len(said) == 1
        return code, said[0]

    return run


def before(monkeypatch, name, act):
    """Have ``act`` happen once, just before the launcher's own ``name``."""
    real = getattr(Launch, name)
    left = [True]

    def acting(self, *args):
        if left.pop() if left else False:
            act()
        return real(self, *args)

    monkeypatch.setattr(Launch, name, acting)


def test_a_full_disk_when_the_folder_is_made(federation, fedge, disk):
    path = federation(stage("Alone", 1), count=2)
    disk.fill()
    code, said = fedge("up", path, "--inline", "--runs", disk.path / "runs")
    assert code == 1
    assert said.endswith("can't be written: No space left on device")
    assert str(disk.path / "runs") in said


def test_a_disk_without_room_for_another_name(federation, fedge, tmp_path):
    place = tmp_path / "disk"
    _mounted(place, "size=8m,nr_inodes=2")
    try:
        (place / "last").touch()
        code, said = fedge("up", federation(stage("Alone", 1)), "--inline", "--runs", place)
    finally:
        subprocess.run(["umount", "-l", place], check=True)
    assert code == 2
    assert said.endswith("can't be made: No space left on device (--runs DIR chooses another place)")


MOMENTS = ("_stages", "_stage", "_leave", "_save_model", "round 1/2", "round 2/2")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_disk_that_is_full_at_a_moment_ends_the_run_and_a_resume_goes_on(
    moment, federation, fedge, inline, disk, tmp_path, monkeypatch
):
    path = federation(stage("Remembers", 2), count=2)
    expected = sha(inline(path))
    with monkeypatch.context() as patch:
        if moment.startswith("_"):
            before(patch, moment, disk.fill)
        else:
            patch.setattr("fedge.run.checkpoint.save_state", _full_in(disk, moment))
        code, said = fedge("up", path, "--inline", "--runs", disk.path / "runs")
    assert code == 1
    assert "No space left on device" in said
    run = next((disk.path / "runs").iterdir())
    assert f"fedge: {run}" in said, "the line names the file"
    assert not [file for file in run.rglob(".*") if file.is_file() and file.stat().st_size], "no halves are left"
    disk.clear()
    assert sha(inline(None, resume=run)) == expected
    assert json.loads((run / "summary.json").read_text())["status"] == "done"


def _full_in(disk, moment):
    """The checkpoint's own writing, on a disk that fills up before the one of this round."""
    from fedge.run.states import save_state

    left = [int(moment.split()[1].split("/")[0])]

    def save(state, path):
        left[0] -= 1
        if left[0] == 0:
            disk.fill()
        save_state(state, path)

    return save


@pytest.mark.slow
def test_a_disk_that_is_full_when_onnx_is_written(federation, fedge, inline, disk, tmp_path, monkeypatch):
    path = federation(stage("anytime", 1, "deploy", exits=[1, 2]), count=2)
    path.write_text(path.read_text().replace("tests.run.methods:anytime", "anytime"))
    calm = inline(path)
    with monkeypatch.context() as patch:
        before(patch, "_export", disk.fill)
        code, said = fedge("up", path, "--inline", "--runs", disk.path / "runs")
    assert code == 1
    assert "No space left on device" in said
    disk.clear()
    run = inline(None, resume=next((disk.path / "runs").iterdir()))
    assert sha(run) == sha(calm)
    assert [export["file"] for export in run.summary["exports"]] == [one["file"] for one in calm.summary["exports"]]


def test_a_disk_that_is_read_only(federation, fedge, inline, disk):
    path = federation(stage("Alone", 1), count=2)
    done = inline(path)
    subprocess.run(["cp", "-r", done.folder, disk.path / "run"], check=True)
    subprocess.run(["mount", "-o", "remount,ro", disk.path], check=True)
    code, said = fedge("up", path, "--inline", "--runs", disk.path / "runs")
    assert code == 2
    assert "can't be made: Read-only file system (--runs DIR" in said
    code, said = fedge("up", "--inline", "--resume", disk.path / "run")
    assert code == 1
    assert said.endswith("can't be written: Read-only file system")


def test_a_folder_that_is_locked(federation, fedge, inline, tmp_path, permissions):
    path = federation(stage("Alone", 1), count=2)
    done = inline(path)
    places = (tmp_path / "locked", done.folder)
    places[0].mkdir()
    for place in places:
        place.chmod(0o555)
    try:
        code, said = fedge("up", path, "--inline", "--runs", places[0])
        assert code == 2
        assert "can't be made: Permission denied (--runs DIR" in said
        code, said = fedge("up", "--inline", "--resume", done.folder)
        assert code == 1
        assert said.endswith("can't be written: Permission denied")
        done.folder.chmod(0)
        code, said = fedge("up", "--inline", "--resume", done.folder)
        assert code == 2
        assert "Permission denied" in said
    finally:
        for place in places:
            place.chmod(0o755)
