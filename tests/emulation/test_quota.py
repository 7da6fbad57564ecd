"""A share of a core: what is written for the kernel; a child that is ahead is stopped, and never left so."""

import os
import time
from pathlib import Path

import pytest

from fedge.emulation import folder, quota
from fedge.errors import LimitError


@pytest.fixture
def busy():
    """A child that takes all the processor time it gets."""
    pid = os.fork()
    if pid == 0:
        while True:
            sum(range(1000))
    yield pid
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def test_a_child_that_is_ahead_is_stopped_and_goes_on_when_it_is_lifted(busy):
    duty = quota.Duty(used=lambda pid: 1e6 * time.monotonic())  # ahead for ever
    duty.join(busy)
    duty.apply(0.1)
    assert until(lambda: state(busy) == "T")
    duty.lift()
    assert until(lambda: state(busy) in "RS")


def test_a_child_that_is_behind_is_never_stopped(busy):
    seen = []
    duty = quota.Duty(used=lambda pid: seen.append(state(pid)) or 0.0)
    duty.join(busy)
    duty.apply(0.5)
    assert until(lambda: len(seen) > 5)
    duty.close()
    assert "T" not in seen


def test_a_child_that_goes_is_let_go(busy):
    duty = quota.Duty()
    duty.join(busy)
    duty.apply(0.05)
    duty.close()
    gone = quota.Duty(used=lambda pid: None)
    gone.join(busy)
    with pytest.raises(LimitError, match="is gone"):
        gone.apply(0.5)


def test_used_time_grows_while_a_child_burns_and_is_not_told_of_one_that_is_gone(busy):
    first = quota.processor_seconds(busy)
    assert until(lambda: quota.processor_seconds(busy) > first + 0.05)
    assert quota.processor_seconds(1 << 22) is None


def test_version_1_writes_a_quota_for_each_100_ms(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "find_mount", lambda *_: folder.Mount("/", tmp_path))
    monkeypatch.setattr(folder, "own_group", lambda *_: "/")
    monkeypatch.setattr(folder, "make", _with("cpu.cfs_quota_us", "cpu.cfs_period_us", "cgroup.procs"))
    group = quota.Cgroup1Quota.open("demo", "pi-00")
    assert group.path.name == "pi-00"
    group.join(77)
    group.apply(0.25)
    assert _text(group.path, "cgroup.procs", "cpu.cfs_period_us", "cpu.cfs_quota_us") == ["77", "100000", "25000"]
    group.lift()
    assert _text(group.path, "cpu.cfs_quota_us") == ["-1"]


def test_version_2_writes_quota_and_period_where_cpu_is_handed_on(tmp_path, monkeypatch):
    (tmp_path / "cgroup.subtree_control").write_text("memory pids\n")
    mount = folder.Mount("/", tmp_path)
    with pytest.raises(LimitError, match=r"doesn't hand on cpu .*Delegate"):
        quota.Cgroup2Quota.open("demo", "pi-00", mount, "/")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    monkeypatch.setattr(folder, "make", _with("cpu.max", "cgroup.procs"))
    group = quota.Cgroup2Quota.open("demo", "pi-00", mount, "/")
    group.apply(1.5)
    assert _text(group.path, "cpu.max") == ["150000 100000"]
    group.lift()
    assert _text(group.path, "cpu.max") == ["max 100000"]


def test_a_kernel_without_quotas_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "find_mount", lambda *_: folder.Mount("/", tmp_path))
    monkeypatch.setattr(folder, "own_group", lambda *_: "/")
    with pytest.raises(LimitError, match="keeps no quotas"):
        quota.Cgroup1Quota.open("demo", "pi-00")


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    """A control file takes what is written to it whole; a plain file would keep the end of a longer text."""
    monkeypatch.setattr(folder, "write", lambda path, text: path.write_text(text))


def _with(*files):
    def make(path):
        path.mkdir()
        for name in files:
            (path / name).write_text("")

    return make


def _text(path, *names):
    return [(path / name).read_text() for name in names]
