"""One process's parent, cores, name, identity, memory and place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedge.emulation import malloc, process
from fedge.errors import LimitError

from .conftest import MiB

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's prctl and /proc")


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@linux
def test_a_grandchild_dies_with_its_parent(fork):
    def parent(child):
        me = os.getpid()
        pid = os.fork()
        if pid == 0:
            process.die_with_parent(parent=me)
            child.say((os.getpid(), process.start_time(os.getpid())))
            time.sleep(60)
        time.sleep(60)

    child = fork(parent)
    pid, started = child.hear()
    assert process.alive(pid, started)
    child.close()
    assert until(lambda: not process.alive(pid, started))


@linux
def test_a_parent_gone_before_the_request_is_noticed(fork):
    child = fork(lambda child: process.die_with_parent(parent=os.getppid() + 1))
    assert child.wait() == -signal.SIGKILL
    child = fork(lambda child: process.die_with_parent(signal.SIGTERM, parent=child.parent))
    assert child.wait() == 0


@linux
def test_affinity_is_taken_on_and_held(fork):
    core = min(process.cores())

    def body(child):
        assert process.pin(f"cpu:{core}") == {"CUDA_VISIBLE_DEVICES": ""}
        child.say(os.sched_getaffinity(0))

    assert fork(body).hear() == {core}


@pytest.mark.parametrize("wanted", [[], [10**6], [0, 10**6]])
def test_a_core_that_is_not_there_is_refused(wanted):
    before = process.cores()
    with pytest.raises(LimitError, match="not among"):
        process.set_affinity(wanted)
    assert process.cores() == before


def test_a_process_is_known_by_pid_and_start(fork):
    child = fork(lambda child: child.hear())
    started = process.start_time(child.pid)
    assert process.alive(child.pid, started)
    assert not process.alive(child.pid, started + 1)
    assert not process.alive(child.pid, None)
    os.kill(child.pid, signal.SIGKILL)
    assert until(lambda: not process.alive(child.pid, started))  # a zombie until it is waited for
    child.wait()
    assert process.start_time(child.pid) is None
    assert not process.alive(child.pid, started)


@linux
def test_a_name_with_brackets_and_blanks_does_not_confuse(fork):
    def body(child):
        assert process.set_name("a) R (b phone-000000")
        child.say(Path("/proc/self/comm").read_text().strip())
        child.hear()

    child = fork(body)
    assert child.hear() == "a) R (b phone-0"
    assert process.alive(child.pid, process.start_time(child.pid))


class Interpreter:
    """A new interpreter that runs ``script`` in lockstep with the test.

    Not a fork of this one: the heap of an interpreter that ran other tests has holes, and memory that is taken
    from a hole is seen by no count.
    """

    def __init__(self, script: str):
        self._process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def hear(self) -> str:
        return self._process.stdout.readline().strip()

    def go_on(self) -> str:
        """Lets it run to its next word, which is returned."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.hear()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def interpreter():
    started = []

    def start(script):
        started.append(Interpreter(script))
        return started[-1]

    yield start
    for one in started:
        one.close()


TAKES_32_MIB = f"""
from fedge.emulation import malloc
malloc.pin_malloc()
print("ready", flush=True)
input()
block = bytearray(b"\\x01") * {32 * MiB}
print("taken", flush=True)
input()
del block
print("freed", flush=True)
input()
"""


@linux
def test_memory_is_told(interpreter):
    child = interpreter(TAKES_32_MIB)
    assert child.hear() == "ready"
    before, own = process.memory(child.pid), process.written(child.pid)
    assert process.forget_highest(child.pid)
    assert child.go_on() == "taken"
    after = process.memory(child.pid)
    for name in ("anonymous", "resident", "data"):
        assert getattr(after, name) - getattr(before, name) == pytest.approx(32 * MiB, abs=2 * MiB)
    assert process.written(child.pid).private - own.private == pytest.approx(32 * MiB, abs=2 * MiB)
    assert child.go_on() == "freed"
    freed = process.memory(child.pid)
    assert freed.highest - before.resident == pytest.approx(32 * MiB, abs=2 * MiB)
    assert freed.anonymous - before.anonymous == pytest.approx(0, abs=2 * MiB)
    child.close()
    assert process.memory(child.pid) is None
    assert process.written(child.pid) is None
    assert not process.forget_highest(child.pid)


# a block of 20 MiB teaches an unpinned malloc to keep everything smaller in its heap
FREES_39_OF_40_MIB = f"""
import os
from fedge.emulation import malloc, process
if {{pinned}}:
    assert malloc.pin_malloc()
first = bytearray(b"\\x01") * {20 * MiB}
del first
blocks = [bytearray(b"\\x01") * {MiB} for _ in range(40)]
del blocks[:-1]
print(process.written(os.getpid()).private, flush=True)
"""


@linux
@pytest.mark.skipif(malloc._glibc() is None, reason="the C library is not glibc")
def test_pinned_malloc_gives_memory_back(interpreter):
    held = {pinned: int(interpreter(FREES_39_OF_40_MIB.format(pinned=pinned)).hear()) for pinned in (True, False)}
    assert held[True] < held[False] - 20 * MiB


# what stays keeps the pages between from going back, where blocks of that size come from the heap
FREES_SEVEN_OF_8_BLOCKS = f"""
import os
from fedge.emulation import malloc, process
assert malloc.pin_malloc({{model}})
blocks = [bytearray(b"\\x01") * {64 * 1024} for _ in range(640)]
blocks = [bytearray(b"\\x01") * 100 for _ in range(10)] + blocks[::8]
print(process.written(os.getpid()).private, flush=True)
"""


@linux
@pytest.mark.skipif(malloc._glibc() is None, reason="the C library is not glibc")
def test_with_a_large_model_small_blocks_are_given_back_too(interpreter):
    script = FREES_SEVEN_OF_8_BLOCKS
    held = {model: int(interpreter(script.format(model=model)).hear()) for model in (malloc.LARGE - 1, malloc.LARGE)}
    assert held[malloc.LARGE] < held[malloc.LARGE - 1] - 20 * MiB


def test_places(monkeypatch):
    monkeypatch.setattr(process, "gpus", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert process.pin(None) == {}
    assert process.pin("cpu") == {"CUDA_VISIBLE_DEVICES": ""}
    assert process.pin("cuda:1") == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert process.pin("cuda")["CUDA_VISIBLE_DEVICES"] == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-abc")
    assert process.pin("cuda:0")["CUDA_VISIBLE_DEVICES"] == "1"
    assert process.pin("cuda:1")["CUDA_VISIBLE_DEVICES"] == "GPU-abc"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,7,1")
    with pytest.raises(LimitError, match=r"shows 1 GPU"):
        process.pin("cuda:1")


@pytest.mark.parametrize("place", ["cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, place):
    monkeypatch.setattr(process, "gpus", lambda: 0)
    for granted in (None, "0", "GPU-abc", ""):
        if granted is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", granted)
        with pytest.raises(LimitError, match="shows 0 GPU"):
            process.pin(place)


@pytest.mark.parametrize("place", ["tpu:0", "cpu:x", "cuda:-1", "cuda:0,1", "cpu:1,", "", "cpu:²"])
def test_what_is_no_place_is_refused(place):
    with pytest.raises(LimitError):
        process.pin(place)


def test_gpus_are_counted_without_cuda():
    assert process.gpus() >= 0
