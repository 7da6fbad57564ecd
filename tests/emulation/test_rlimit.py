"""The wall without cgroups: refused allocations in the device, and the watch that backs them up."""

from __future__ import annotations

import errno
import signal
import time

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
    group, child = start(limits, fork, [CAP * 8 // 10, CAP * 4 // 10])
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


@pytest.mark.slow
def test_torch_is_refused_too(limits, fork):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    record = limits.open("run", "torch", 1).record()

    def body(child):
        group = wall.rejoin(record)
        group.join()
        malloc.pin_malloc()
        group.apply(group.usage() + CAP)
        kept = []
        try:
            while True:
                kept.append(torch.ones(MiB // 4))
        except RuntimeError as error:
            child.say((wall.is_allocation_failure(error), len(kept)))

    told, count = fork(body).hear()
    assert told
    assert count == pytest.approx(CAP // MiB, abs=2)
