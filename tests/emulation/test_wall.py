"""Choosing a wall, and finding and removing folders."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from fedge.emulation import cgroup1, cgroup2, folder, rlimit, wall
from fedge.errors import LimitError


class Leaky(rlimit.Rlimit):
    """A wall that says yes and does nothing."""

    def __init__(self):
        super().__init__(enforce=False)


def test_a_wall_that_stops_nobody_is_not_believed(monkeypatch):
    monkeypatch.setitem(wall._FIND, "cgroup1", Leaky)
    with pytest.raises(LimitError, match="was not stopped"):
        wall.choose("cgroup1")


def test_auto_takes_the_first_that_is_proved(monkeypatch):
    monkeypatch.setitem(wall._FIND, "cgroup2", Leaky)
    monkeypatch.setitem(wall._FIND, "cgroup1", Leaky)
    assert wall.choose().name == "rlimit"


def test_auto_never_ends_without_a_wall(monkeypatch):
    for name in wall._FIND:
        monkeypatch.setitem(wall._FIND, name, Leaky)
    with pytest.raises(LimitError) as caught:
        wall.choose()
    assert all(f"{name}: " in caught.value.message for name in ("cgroup2", "cgroup1", "rlimit"))
    assert "--best-effort" in caught.value.hint


def test_what_failed_is_named(monkeypatch):
    monkeypatch.setattr(folder, "find_mount", lambda *_: None)
    for name in ("cgroup1", "cgroup2"):
        with pytest.raises(LimitError, match=f"memory wall '{name}' does not work here: no cgroup"):
            wall.choose(name)
    with pytest.raises(LimitError, match="no memory wall 'brick'"):
        wall.choose("brick")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(LimitError, match=f"cannot make the group {tmp_path}/gone"):
        cgroup1.Cgroup1(tmp_path / "gone").open("run", "phone", 0)
    with pytest.raises(LimitError, match=f"cannot write '0' to {tmp_path}/cgroup.procs"):
        cgroup1.Group(str(tmp_path)).join()


def test_a_record_leads_back_to_its_group():
    for made in (cgroup1.Group("/a"), cgroup2.Group("/a"), rlimit.Group("x", True), rlimit.Group("x", False)):
        again = wall.rejoin(made.record())
        assert (type(again), again.record(), again.sides) == (type(made), made.record(), made.sides)


def test_the_proof_leaves_no_child():
    wall.choose("rlimit")
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_proof_ends_a_child_that_hangs(monkeypatch):
    monkeypatch.setattr(wall, "_PROOF_SECONDS", 0.1)
    monkeypatch.setattr(wall, "_proof_child", lambda *_: signal.pause())
    with pytest.raises(LimitError, match="could not join"):
        wall.prove(Leaky())
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_sweep_touches_only_what_is_ours(tmp_path):
    mount = tmp_path / "cg"
    run = mount / "fedge-demo-1"
    for path in (run / "a.0", mount / "other", tmp_path / "fedge-elsewhere"):
        path.mkdir(parents=True)
    (mount / "fedge-link").symlink_to(tmp_path / "fedge-elsewhere")
    asked = [str(run), str(run / "a.0"), str(mount / "other"), str(tmp_path / "fedge-elsewhere")]
    asked += [
        str(mount / "fedge-link"),
        "fedge-relative",
        str(mount / "fedge-x" / ".." / "other"),
        str(mount / "fedge-gone"),
    ]
    assert wall.sweep(asked, mounts=[mount]) == []
    assert not run.exists()
    assert (mount / "other").is_dir()
    assert (tmp_path / "fedge-elsewhere").is_dir()
    assert (mount / "fedge-link").is_symlink()


def test_sweep_reports_what_is_not_empty(tmp_path):
    busy = tmp_path / "fedge-demo-1"
    (busy / "a.0").mkdir(parents=True)
    assert wall.sweep([str(busy)], mounts=[tmp_path]) == [str(busy)]


def test_what_a_killed_launcher_could_not_record_goes_by_the_pid_in_its_name(tmp_path):
    gone = 1 << 22  # above every pid
    mine = [f"fedge-demo-{gone}/a.0", f"fedge-demo-{gone + 1}"]
    kept = [f"fedge-demo-{os.getpid()}/a.0", f"fedge-demo-two-{gone}", f"demo-{gone}", "fedge-demo-x"]
    for name in (*mine, *kept):
        (tmp_path / name).mkdir(parents=True)
    folder.remove_abandoned("demo", tmp_path)
    assert not any((tmp_path / name.partition("/")[0]).exists() for name in mine)
    assert all((tmp_path / name).is_dir() for name in kept)


def test_a_launcher_killed_in_its_proof_leaves_no_child(monkeypatch, fork):
    def launcher(child):
        monkeypatch.setattr(wall, "_await", lambda end, complaint: (os.read(end, 1), child.say(), signal.pause()))
        wall.prove(rlimit.Rlimit())

    killed = fork(launcher)
    killed.hear()
    proving = psutil.Process(killed.pid).children()
    assert len(proving) == 1
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert psutil.wait_procs(proving, timeout=20.0)[1] == []


def test_mounts_and_groups_are_read_from_the_kernels_tables(tmp_path):
    (tmp_path / "a b" / "mine").mkdir(parents=True)
    table = tmp_path / "mountinfo"
    point = str(tmp_path / "a b").replace(" ", "\\040")
    table.write_text(
        "20 1 0:5 / /proc rw shared:1 - proc proc rw\n"
        f"30 1 0:6 /docker/x {point} rw shared:9 - cgroup cgroup rw,memory\n"
        "31 1 0:7 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    mount = folder.find_mount("cgroup", "memory", str(table))
    assert mount == folder.Mount("/docker/x", tmp_path / "a b")
    assert folder.find_mount("cgroup", "cpu", str(table)) is None
    assert folder.find_mount("cgroup2", None, str(table)).point == Path("/sys/fs/cgroup/unified")
    assert mount.folder("/docker/x/mine") == tmp_path / "a b" / "mine"
    # out of sight, not there, or leading outside: the mount's own top
    assert all(mount.folder(group) == mount.point for group in ("/docker/xy", "/docker/x/gone", "/docker/x/../..", "/"))
    groups = tmp_path / "cgroup"
    groups.write_text("5:cpu,cpuacct:/\n4:memory:/docker/x\n0::/user.slice\n")
    assert folder.own_group("memory", str(groups)) == "/docker/x"
    assert folder.own_group("", str(groups)) == "/user.slice"
    assert folder.own_group("pids", str(groups)) == "/"


@pytest.mark.parametrize("text", ["..", "/", "", "a/b", ".hidden", "naïve phone", "x" * 300])
def test_any_name_is_one_plain_folder(text):
    name = folder.safe_name(text)
    assert name
    assert "/" not in name
    assert not name.startswith(".")
    assert len(name) <= 80
    assert name.isascii()
