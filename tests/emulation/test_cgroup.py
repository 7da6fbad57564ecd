"""The wall of a real cgroup, by children that really run into it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from fedge.emulation import malloc, wall
from fedge.errors import LimitError

from .conftest import MiB, fill

CAP = 64 * MiB


def eater(record, need):
    """A device that joins, waits to be walled in, and then allocates ``need`` bytes."""

    def body(child):
        wall.rejoin(record).join()
        malloc.pin_malloc()
        child.say("joined")
        child.hear()
        block = fill(need)
        child.say(len(block))
        child.hear()
        del block
        malloc.trim()
        child.say("freed")
        child.hear()

    return body


def start(cgroup, fork, need, cap=CAP, name="phone"):
    group = cgroup.open("run", name, 1)
    child = fork(eater(group.record(), need))
    assert child.hear() == "joined"
    group.adopt(child.pid)
    group.apply(cap)
    return group, child


def test_below_the_wall_lives_and_is_measured(cgroup, fork):
    need = CAP * 9 // 10
    group, child = start(cgroup, fork, need)
    before = group.usage()
    group.reset_peak()
    child.say("go")
    assert child.hear() == need
    assert group.usage() - before == pytest.approx(need, abs=2 * MiB)
    assert group.peak() - before == pytest.approx(need, abs=2 * MiB)
    child.say("free")
    assert child.hear() == "freed"
    assert group.usage() - before == pytest.approx(0, abs=2 * MiB)
    assert group.peak() - before == pytest.approx(need, abs=2 * MiB)
    if group.reset_peak():
        assert group.peak() - before == pytest.approx(0, abs=2 * MiB)
    child.say("end")
    assert child.wait() == 0
    assert not group.killed_for_memory()
    assert group.close()


def test_beyond_the_wall_dies_and_is_told_apart(cgroup, fork):
    group, child = start(cgroup, fork, CAP * 11 // 10)
    child.say("go")
    with pytest.raises(EOFError):
        child.hear()
    assert child.wait() == -signal.SIGKILL
    assert group.killed_for_memory()
    assert group.peak() == pytest.approx(CAP, abs=MiB)
    assert group.close()


def test_a_plain_kill_is_not_a_memory_death(cgroup, fork):
    group, child = start(cgroup, fork, CAP // 2)
    child.say("go")
    child.hear()
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not group.killed_for_memory()


def test_one_device_at_its_wall_leaves_its_neighbour_alone(cgroup, fork):
    fat, doomed = start(cgroup, fork, 2 * CAP, name="fat")
    thin, spared = start(cgroup, fork, CAP // 2, name="thin")
    doomed.say("go")
    assert doomed.wait() == -signal.SIGKILL
    spared.say("go")
    assert spared.hear() == CAP // 2
    assert (fat.killed_for_memory(), thin.killed_for_memory()) == (True, False)


def test_what_was_inherited_is_free_until_it_is_written(cgroup, fork):
    inherited = fill(100 * MiB)
    group = cgroup.open("run", "phone", 1)

    def body(child):
        wall.rejoin(group.record()).join()
        child.say(sum(inherited[::4096]) > 0)
        child.hear()
        for start in range(0, 50 * MiB, 4096):
            inherited[start] = 2
        child.say("written")
        child.hear()

    child = fork(body)
    assert child.hear()
    assert group.usage() < 2 * MiB
    child.say("write")
    child.hear()
    assert group.usage() == pytest.approx(50 * MiB, abs=2 * MiB)


def test_a_lifted_wall_stops_nobody(cgroup, fork):
    group, child = start(cgroup, fork, 2 * CAP)
    group.lift()
    child.say("go")
    assert child.hear() == 2 * CAP


def test_a_wall_can_move_both_ways(cgroup, fork):
    group, child = start(cgroup, fork, CAP // 2)
    for cap in (2 * CAP, CAP, CAP * 3 // 4, 4 * CAP):
        group.apply(cap)
    child.say("go")
    assert child.hear() == CAP // 2


def test_a_wall_below_what_is_held_is_refused_on_v1(fork):
    try:
        cgroup1 = wall.choose("cgroup1")
    except LimitError as error:
        pytest.skip(str(error))
    group, child = start(cgroup1, fork, 32 * MiB)
    child.say("go")
    child.hear()
    with pytest.raises(LimitError, match=r"holds \d+ bytes already"):
        group.apply(8 * MiB)
    assert not group.killed_for_memory()
    child.close()
    cgroup1.close()


def test_file_cache_neither_counts_nor_kills(cgroup, fork, tmp_path):
    big = tmp_path / "big"
    big.write_bytes(b"")
    group = cgroup.open("run", "phone", 1)

    def body(child):
        wall.rejoin(group.record()).join()
        child.say()
        child.hear()
        with big.open("wb") as out:
            for _ in range(96):
                out.write(b"x" * MiB)
                out.flush()
                os.fdatasync(out.fileno())
        child.say()
        child.hear()

    child = fork(body)
    child.hear()
    group.apply(48 * MiB)
    child.say()
    child.hear()
    assert group.usage() < 4 * MiB
    group.reset_peak()
    child.say()
    assert child.wait() == 0
    assert not group.killed_for_memory()


def test_groups_lie_in_a_folder_of_the_run_and_names_cannot_escape(cgroup):
    group = cgroup.open("../../evil run", "a/b\n../c", 3)
    folder, name = Path(group.path).parent, Path(group.path).name
    assert folder.parent.samefile(cgroup.parent)
    assert folder.name == f"fedge-_.._evil_run-{os.getpid()}"
    assert name == "a_b_.._c.3"
    assert cgroup.paths() == [group.path, str(folder)]
    cgroup.close()
    assert not folder.exists()
    assert cgroup.paths() == []


def test_close_waits_for_the_dying_and_does_not_mind_the_gone(cgroup, fork):
    group, child = start(cgroup, fork, MiB)
    assert not group.close()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert group.close()
    assert group.close()
    group.lift()
    assert not group.killed_for_memory()
    assert group.usage() == 0


def test_sweep_removes_the_groups_of_a_killed_launcher(cgroup, fork):
    def launcher(child):
        for device in ("a", "b"):
            cgroup.open("killed", device, 1)
        child.say(cgroup.paths())
        time.sleep(60)

    child = fork(launcher)
    paths = child.hear()
    child.close()
    assert all(Path(path).is_dir() for path in paths)
    assert wall.sweep(paths) == []
    assert not any(Path(path).exists() for path in paths)
    assert wall.sweep(paths) == []


def test_sweep_leaves_what_is_in_use(cgroup, fork):
    group, _ = start(cgroup, fork, MiB)
    outer = str(Path(group.path).parent)
    assert wall.sweep([group.path, outer]) == [group.path, outer]
    assert Path(group.path).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("share", "lives"), [(0.9, True), (1.1, False)])
def test_torch_tensors_meet_the_wall(cgroup, fork, share, lives):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # a fork after a parallel region would hang
    group = cgroup.open("run", "torch", 1)

    def body(child):
        wall.rejoin(group.record()).join()
        assert malloc.pin_malloc()
        torch.ones(1000).sum()
        child.say()
        child.hear()
        kept = [torch.ones(MiB // 4) for _ in range(int(CAP * share) // MiB)]
        child.say(len(kept))
        child.hear()

    child = fork(body)
    child.hear()
    group.apply(group.usage() + CAP)
    child.say()
    if lives:
        assert child.hear() == int(CAP * share) // MiB
    else:
        assert child.wait() == -signal.SIGKILL
    assert group.killed_for_memory() is not lives
