"""Version 2 against a faked tree: which group is taken, what is written where, what the numbers mean."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fedge.emulation import cgroup2, folder
from fedge.errors import LimitError

TABLE = {"memory.stat": "anon 3000\nfile 900\nshmem 400\ninactive_file 500\n", "memory.current": "5000\n"}


def tree(path: Path, *, top=False, controllers="cpu memory pids", hands_on="", procs=()) -> Path:
    """One group of a hierarchy as the kernel would show it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.controllers").write_text(controllers + "\n")
    (path / "cgroup.subtree_control").write_text(hands_on)
    (path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in procs))
    if not top:
        (path / "cgroup.type").write_text("domain\n")
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "memory.peak", "memory.reclaim"):
            (path / name).write_text("")
        (path / "memory.events").write_text("low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n")
        for name, text in TABLE.items():
            (path / name).write_text(text)
    return path


@pytest.fixture
def kernel(monkeypatch):
    """Folders come with their files and go with them; ``procs`` follow what is written."""

    def write(path: Path, text: str) -> None:
        assert path.exists(), path
        if path.name == "cgroup.procs":
            pid = str(os.getpid()) if text == "0" else text
            for other in Path(path.parents[2]).rglob("cgroup.procs"):
                other.write_text("".join(line for line in other.read_text().splitlines(True) if line.strip() != pid))
            path.write_text(path.read_text() + f"{pid}\n")
        elif path.name == "cgroup.subtree_control":
            held = set(path.read_text().split())
            held = held | {text[1:]} if text[0] == "+" else held - {text[1:]}
            members = (path.parent / "cgroup.procs").read_text().split()
            if held and members and (path.parent / "cgroup.type").exists():
                raise LimitError(f"cannot write {path}: Device or resource busy")
            path.write_text(" ".join(sorted(held)))
        else:
            path.write_text(text)

    def remove(path: Path, patience: float = 1.0) -> bool:
        shutil.rmtree(path, ignore_errors=True)
        return True

    monkeypatch.setattr(folder, "make", tree)
    monkeypatch.setattr(folder, "write", write)
    monkeypatch.setattr(folder, "remove", remove)


def mounted(tmp_path: Path, **top) -> folder.Mount:
    return folder.Mount("/", tree(tmp_path / "cg", top=True, **top))


def test_at_the_top_memory_is_handed_on_with_processes_in_place(kernel, tmp_path):
    mount = mounted(tmp_path, procs=[1, os.getpid()])
    wall = cgroup2.Cgroup2.find(mount, "/")
    group = wall.open("demo", "phone-00", 2)
    run = mount.point / f"fedge-demo-{os.getpid()}"
    assert Path(group.path) == run / "phone-00.2"
    assert (mount.point / "cgroup.subtree_control").read_text() == "memory"
    assert (run / "cgroup.subtree_control").read_text() == "memory"
    assert (mount.point / "cgroup.procs").read_text().split() == ["1", str(os.getpid())]
    assert [Path(group.path, name).read_text() for name in ("memory.swap.max", "memory.oom.group")] == ["0", "1"]
    assert wall.paths() == [group.path, str(run)]
    wall.close()
    assert not run.exists()


def test_a_scope_of_our_own_is_emptied_into_a_leaf_and_refilled(kernel, tmp_path):
    mount = mounted(tmp_path)
    scope = tree(mount.point / "user.slice" / "fedge.scope", procs=[os.getpid()])
    wall = cgroup2.Cgroup2.find(mount, "/user.slice/fedge.scope")
    wall.open("demo", "phone", 0)
    leaf = scope / f"fedge-launcher-{os.getpid()}"
    assert (scope / "cgroup.procs").read_text() == ""
    assert (leaf / "cgroup.procs").read_text().split() == [str(os.getpid())]
    assert (scope / "cgroup.subtree_control").read_text() == "memory"
    assert str(leaf) in wall.paths()
    wall.close()
    assert (scope / "cgroup.procs").read_text().split() == [str(os.getpid())]
    assert (scope / "cgroup.subtree_control").read_text() == ""
    assert sorted(path.name for path in scope.iterdir() if path.is_dir()) == []


def test_a_shared_group_gives_way_to_the_slice_above(kernel, tmp_path):
    mount = mounted(tmp_path)
    above = tree(mount.point / "app.slice", hands_on="memory pids")
    tree(above / "terminal.scope", procs=[1, os.getpid()])
    wall = cgroup2.Cgroup2.find(mount, "/app.slice/terminal.scope")
    assert wall.parent == above


@pytest.mark.parametrize(
    ("group", "above", "complaint"),
    [
        ({"controllers": "cpu pids"}, {"controllers": "cpu pids"}, "cgroup.controllers doesn't list memory"),
        ({"procs": [1]}, {}, "processes that are not fedge's (1)"),
        ({"procs": [1]}, {}, "cgroup.subtree_control doesn't hand on memory"),
    ],
)
def test_what_keeps_every_group_from_serving_is_said(tmp_path, group, above, complaint):
    mount = mounted(tmp_path)
    tree(mount.point / "slice", **above)
    tree(mount.point / "slice" / "scope", **group)
    with pytest.raises(LimitError) as caught:
        cgroup2.Cgroup2.find(mount, "/slice/scope")
    assert complaint in caught.value.message
    assert "Delegate=yes" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_lack_of_permission_is_said(tmp_path):
    mount = mounted(tmp_path)
    (mount.point / "cgroup.procs").chmod(0o400)
    with pytest.raises(LimitError, match=r"no permission to write cgroup\.procs"):
        cgroup2.Cgroup2.find(mount, "/")


@pytest.fixture
def group(tmp_path):
    return cgroup2.Group(str(tree(tmp_path / "phone.0")))


def test_a_group_is_commanded_through_its_files(group, kernel):
    here = Path(group.path)
    group.apply(123456)
    assert (here / "memory.max").read_text() == "123456"
    group.lift()
    assert (here / "memory.max").read_text() == "max"
    group.close()
    group.lift()
    assert (group.usage(), group.peak(), group.killed_for_memory()) == (0, 0, False)


def test_usage_leaves_out_files_but_not_shared_memory(group):
    assert group.usage() == 5000 - (900 - 400)


@pytest.mark.parametrize(
    ("oom", "oom_kill", "says"),
    [(0, 0, False), (1, 0, False), (0, 1, False), (2, 1, True)],
)
def test_only_a_kill_at_its_own_limit_is_a_memory_death(group, oom, oom_kill, says):
    Path(group.path, "memory.events").write_text(f"max 3\noom {oom}\noom_kill {oom_kill}\n")
    assert group.killed_for_memory() is says


def test_the_peak_is_read_through_the_file_that_reset_it(group):
    here = Path(group.path)
    (here / "memory.peak").write_text("9000\n")
    assert group.peak() == 9000
    assert group.reset_peak()
    assert (here / "memory.peak").read_text().startswith("reset")
    (here / "memory.peak").write_text("5200\n")
    assert group.peak() == 5200
    assert (here / "memory.reclaim").read_text() == "500 swappiness=0"
    group.close()


def test_a_kernel_without_a_peak_tells_what_is_held_now(group):
    Path(group.path, "memory.peak").unlink()
    assert not group.reset_peak()
    assert group.peak() == 5000


def test_joining_writes_the_calling_process(group):
    group.join()
    assert Path(group.path, "cgroup.procs").read_text() == "0"
    assert group.record() == {"wall": "cgroup2", "path": group.path}
