"""The wall without cgroups: refused allocations in the device, and the watch that backs them up."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from fedge.emulation import malloc, rlimit, wall

from .conftest import MiB, mapped

CAP = 48 * MiB


def device(record, steps, limit=CAP):
    """Joins, takes its limit from within, and does each step: says how it ended and what it then holds."""

    def body(child):
        group = wall.rejoin(record)
        group.join()
        malloc.pin_malloc()
        malloc.trim()  # now, and not at the first free that the pinned threshold lets trim, in the middle of a count
        child.say("joined")
        child.hear()
        if limit is not None:
            group.apply(limit)
        kept = []
        for step in steps:
            try:
                kept.append(mapped(step))
                child.say("fits")
            except Exception as error:
                child.say("refused" if wall.is_allocation_failure(error) else repr(error))
            child.hear()
        group.lift()
        kept.append(mapped(CAP))
        child.say("lifted")
        child.hear()

    return body


@pytest.fixture
def limits():
    found = wall.choose("rlimit")
    yield found
    found.close()


def start(limits, fork, steps, limit=CAP):
    group = limits.open("run", "phone", 1)
    child = fork(device(group.record(), steps, limit))
    child.hear()
    group.adopt(child.pid)
    return group, child


def test_the_device_is_refused_and_lives(limits, fork):
    group, child = start(limits, fork, [CAP * 8 // 10, CAP * 4 // 10 + rlimit.HEADROOM])
    before = group.usage()
    group.apply(CAP + 2 * MiB)
    child.say()
    assert child.hear() == "fits"
    assert group.usage() - before == pytest.approx(CAP * 8 // 10, abs=2 * MiB)
    assert group.peak() - before == pytest.approx(CAP * 8 // 10, abs=2 * MiB)
    child.say()
    assert child.hear() == "refused"
    group.lift()
    child.say()
    assert child.hear() == "lifted"
    child.say()
    assert child.wait() == 0
    assert not group.killed_for_memory()
    assert group.usage() == 0
    assert group.peak() - before > CAP


def test_the_watch_kills_what_the_limit_inside_did_not_stop(limits, fork):
    group, child = start(limits, fork, [MiB] * 4 + [2 * CAP], limit=None)
    group.apply(CAP)
    for _ in range(4):
        child.say()
        assert child.hear() == "fits"
    child.say()
    assert child.wait() == -signal.SIGKILL
    assert group.killed_for_memory()
    # it may get to the end of its step before the watch looks
    assert CAP < group.peak() <= 3 * CAP + 4 * MiB


MOMENTS = f"""
import mmap, os, sys
from fedge.emulation import malloc, rlimit, wall

def mapped(size):
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, size, mmap.PAGESIZE):
        block[start] = 1
    return block

def of_a_moment():
    mapped({CAP}).close()

def written_copies():
    for start in range(0, {CAP}, mmap.PAGESIZE):
        inherited[start] = 2

def mappings_never_touched():
    kept.append(mmap.mmap(-1, {CAP // 2}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

def pages_of_a_file():
    with open(sys.argv[2], "rb") as file:
        kept.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    sum(kept[-1][start] for start in range(0, {CAP}, mmap.PAGESIZE))

kept = []
malloc.pin_malloc()
inherited = mapped({CAP})
rlimit.PERIOD = 3600.0  # nobody looks but this program
limits = rlimit.Rlimit()
group = limits.open("run", "phone", 1)
to_child, to_parent = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    mine = wall.rejoin(group.record())
    mine.join()
    os.write(to_parent[1], b"j")
    os.read(to_child[0], 1)
    mine.reset_peak()
    before = mine.peak()
    mine.apply(mine.usage() + {CAP} // 2)
    os.write(to_parent[1], b"r")
    os.read(to_child[0], 1)
    globals()[sys.argv[1]]()
    print("seen", mine.peak() - before, flush=True)
    os.write(to_parent[1], b"d")
    os.read(to_child[0], 1)
    os._exit(0)
os.read(to_parent[0], 1)
group.adopt(pid)
os.write(to_child[1], b"g")
os.read(to_parent[0], 1)
group.apply(group.usage() + {CAP} // 2)
os.write(to_child[1], b"g")
os.read(to_parent[0], 1)
group.look()
os.write(to_child[1], b"g")
os.waitpid(pid, 0)
print("killed", group.killed_for_memory())
"""


@pytest.mark.parametrize(
    ("does", "seen", "killed"),
    [
        ("of_a_moment", CAP, True),
        ("written_copies", CAP, False),  # only a walk sees those, and the device's own look before it answers is one
        ("mappings_never_touched", 0, False),
        ("pages_of_a_file", 0, False),
    ],
)
def test_what_is_held_for_a_moment_counts_and_what_is_not_held_does_not(does, seen, killed):
    """In an interpreter of its own, whose heap has no holes, and with no look but one at the end."""
    # a big file on a disk: pages of one in a temporary folder may be memory
    file = Path(find_spec("torch").origin).with_name("lib") / "libtorch_cpu.so"
    done = subprocess.run(
        [sys.executable, "-c", MOMENTS, does, str(file)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told = dict(line.split() for line in done.stdout.splitlines())
    assert int(told["seen"]) == pytest.approx(seen, abs=2 * MiB)
    assert told["killed"] == str(killed)


def test_peak_starts_anew(limits, fork):
    group, child = start(limits, fork, [MiB])

    def spike():
        child.say()
        child.hear()

    spike()
    group.reset_peak()
    assert group.peak() == pytest.approx(group.usage(), abs=MiB)
    assert child.status is None


def test_without_a_wall_memory_is_still_measured(fork):
    nothing = wall.choose("none")
    group, child = start(nothing, fork, [2 * CAP])
    before = group.usage()
    group.apply(CAP)
    child.say()
    assert child.hear() == "fits"
    assert group.usage() - before == pytest.approx(2 * CAP, abs=2 * MiB)
    assert group.peak() - before == pytest.approx(2 * CAP, abs=2 * MiB)
    assert not group.killed_for_memory()
    nothing.close()
    assert (nothing.name, nothing.paths()) == ("none", [])


def test_the_watch_ends_with_its_last_group(fork):
    limits = rlimit.Rlimit()
    groups = [start(limits, fork, [])[0] for _ in range(2)]
    thread = limits._watch._thread
    assert thread is not None
    groups[0].close()
    assert thread.is_alive()
    groups[1].close()
    assert not thread.is_alive()
    start(limits, fork, [])
    assert limits._watch._thread is not thread
    limits.close()
    assert limits._watch._thread is None


def test_a_gone_device_reads_as_nothing(limits, fork):
    group, child = start(limits, fork, [])
    child.close()
    time.sleep(2 * rlimit.PERIOD)
    group.apply(1)
    group.look()
    assert group.usage() == 0
    assert not group.killed_for_memory()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "no"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(errno.ENOENT, "no"), False),
        (RuntimeError("shapes do not match"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_an_allocation_failure_is_recognised(error, says):
    assert wall.is_allocation_failure(error) is says


TORCH = f"""
import torch
from fedge.emulation import malloc, wall

torch.set_num_threads(1)
limits = wall.choose("rlimit")
group = limits.open("run", "torch", 1)
group.join()
malloc.pin_malloc()
group.apply(group.usage() + {CAP})
kept = []
try:
    while True:
        kept.append(torch.ones({MiB} // 4))
except RuntimeError as error:
    group.lift()
    print(wall.is_allocation_failure(error), len(kept))
limits.close()
"""


@pytest.mark.slow
def test_torch_is_refused_too():
    """In an interpreter of its own: the heap of one that ran other tests has holes, which the limit doesn't count."""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told, count = done.stdout.split()
    assert told == "True"
    assert int(count) == pytest.approx((CAP + rlimit.HEADROOM) // MiB, abs=2)
