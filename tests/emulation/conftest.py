"""Children that are forked, told what to do, and looked at; and a check that no group is left behind."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import select
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedge.emulation import folder, wall
from fedge.errors import LimitError

MiB = 2**20


class Child:
    """A forked process that runs ``body(child)`` in lockstep with the test through two pipes."""

    def __init__(self, body: Callable[[Child], Any]):
        to_child, to_test = os.pipe(), os.pipe()
        self.parent = os.getpid()
        self.status: int | None = None
        self.pid = os.fork()
        inside = self.pid == 0
        self._read, self._write = (to_child[0], to_test[1]) if inside else (to_test[0], to_child[1])
        self._ends: tuple[int, ...] = (self._read, self._write)
        os.close(to_test[0] if inside else to_child[0])
        os.close(to_child[1] if inside else to_test[1])
        if inside:
            gc.freeze()  # what earlier tests left in cycles is not to be freed in the middle of a count
            try:
                body(self)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(9)

    def say(self, value: Any = None) -> None:
        data = pickle.dumps(value)
        os.write(self._write, len(data).to_bytes(4, "big") + data)

    def hear(self, seconds: float = 20.0) -> Any:
        """What the other side says next; EOFError when it has ended instead."""
        if not select.select([self._read], [], [], seconds)[0]:
            raise TimeoutError("the other side said nothing")
        size = os.read(self._read, 4)
        if not size:
            raise EOFError
        return pickle.loads(os.read(self._read, int.from_bytes(size, "big")))

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def close(self) -> None:
        if self.status is None:
            os.kill(self.pid, 9)
            self.wait()
        for end in self._ends:
            os.close(end)
        self._ends = ()


@pytest.fixture
def fork() -> Iterator[Callable[[Callable[[Child], Any]], Child]]:
    children: list[Child] = []

    def start(body: Callable[[Child], Any]) -> Child:
        children.append(Child(body))
        return children[-1]

    yield start
    for child in children:
        child.close()


def leftovers() -> set[str]:
    """Groups of this process's making that still exist, anywhere below the mounted hierarchies' own group."""
    found: set[str] = set()
    for mount, fs, options in folder.all_mounts():
        if fs == "cgroup" and "memory" not in options.split(","):
            continue
        own = mount.folder(folder.own_group("memory" if fs == "cgroup" else ""))
        found.update(str(path) for path in Path(own).glob(f"{folder.PREFIX}*-{os.getpid()}"))
    return found


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert leftovers() == set()


@pytest.fixture
def cgroup() -> Iterator[wall.Wall]:
    """The cgroup wall that works on this host."""
    refused = []
    for name in ("cgroup2", "cgroup1"):
        try:
            found = wall.choose(name)
        except LimitError as error:
            refused.append(str(error))
            continue
        yield found
        found.close()
        return
    pytest.skip("; ".join(refused))


def fill(nbytes: int) -> bytearray:
    """So many bytes from the allocator, every page of them written."""
    return bytearray(b"\x01") * nbytes


def mapped(nbytes: int) -> mmap.mmap:
    """So many bytes in a mapping of their own, every page of them written.

    Not from the heap: a forked child may find a hole of that size in what it inherited, and then maps nothing.
    """
    block = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, nbytes, mmap.PAGESIZE):
        block[start] = 1
    return block
