"""A memory wall for hosts without cgroups: a watch on the device's pages, and RLIMIT_DATA against bursts.

The verdict is the watch's. It compares the limit with the most that the device held since the limit was applied, by
the kernel's own high-water mark, so that a peak of a moment counts though it fell between two looks. A thread of the
launcher looks every 10 ms and kills; the device looks once more before it answers (``peak``), for a peak that no look
came in time for. Counted are anonymous pages, written copies of what the zygote had written included; those alone
raise no mark, so the launcher learns of them at the next new one, and the device before it answers.

RLIMIT_DATA counts private writable address space, which is not what a device holds: stacks, arenas and mappings that
are never touched count too. It stands ``HEADROOM`` above the limit, and refuses what would run far past it before the
watch has looked: the device sees an error (``is_allocation_failure``) rather than a kill. What lies in holes of the
inherited heap costs no address space; the watch sees it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
from dataclasses import dataclass, field
from typing import Any

from fedge.emulation import folder, process
from fedge.errors import LimitError

PERIOD = 0.01
"""Seconds between two looks at a device."""

HEADROOM = 48 << 20
"""Bytes of address space beyond the limit. A device that trained had 2 to 28 MB that it never touched, the same for
models of 57 and of 170 MB (``python -m tools.fidelity memory`` is right about every case with it)."""

_NEAR = 7 / 8
"""The share of a limit from which a new highest mark is worth a walk over all pages."""

_NOTHING = process.Written(0, 0)


@dataclass
class Group:
    """One device under watch. ``join`` is for the device's process, ``adopt`` for the launcher's."""

    label: str
    enforce: bool
    sides: tuple[str, ...] = ("launcher", "device")
    _watch: Watch | None = field(default=None, repr=False)
    _pid: int | None = None
    _started: int | None = None
    _limit: int | None = None
    _start: process.Memory | None = None
    """the memory where counting began, and whose its pages were"""
    _written: process.Written = _NOTHING
    _copied: int = 0
    """bytes of inherited pages that the device has made its own since then"""
    _marked: bool = False
    """whether the kernel's high-water mark began there too"""
    _highest: int = 0
    _killed: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    """held while a reading is taken: one from before ``apply`` may not count after it"""

    def record(self) -> dict[str, Any]:
        return {"wall": "rlimit" if self.enforce else "none", "label": self.label}

    def join(self) -> None:
        """Take the calling process's pages as they are for what it has inherited."""
        self._pid = os.getpid()
        self._count_from_here()

    def adopt(self, pid: int) -> None:
        """Begin to watch ``pid`` from the launcher; call while the device is waiting, before its first own work."""
        self._pid, self._started = pid, process.start_time(pid)
        self._count_from_here()
        if self._watch is not None:
            self._watch.add(self)

    def apply(self, limit_bytes: int) -> None:
        """In the launcher: kill above ``limit_bytes`` from now on. In the device: refuse what runs far past it.

        The launcher's call comes while the device is waiting, for it takes the device's pages as they are.
        """
        if not self.enforce:
            return
        if self._started is not None:
            with self._lock:
                self._count_from_here()
                self._limit = limit_bytes
            return
        now = process.memory(os.getpid())
        if now is None:
            raise LimitError(f"{self.label}: this system doesn't tell a process's memory, so it can't be limited")
        room = max(0, limit_bytes - self.usage()) + HEADROOM
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = now.data + room
        if hard != resource.RLIM_INFINITY and soft > hard:
            soft = hard
        try:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        except (OSError, ValueError) as error:
            raise LimitError(f"{self.label}: RLIMIT_DATA cannot be set to {soft} bytes: {error}") from error

    def lift(self) -> None:
        """Take this side's limit away."""
        self._limit = None
        if self.enforce and self._started is None:
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))

    def usage(self) -> int:
        """Private bytes that the device has written, copies of inherited pages included; 0 once it is gone."""
        found = process.written(self._pid) if self._pid is not None and self._is_there() else None
        return 0 if found is None else found.private

    def peak(self) -> int:
        """The most that the device held at once since ``reset_peak``, or since the launcher's ``apply``."""
        with self._lock:
            self._read(walk=True)
            return self._highest

    def reset_peak(self) -> bool:
        """Start ``peak`` anew; False where the kernel's own mark can't be reset, so that only looks count."""
        with self._lock:
            self._count_from_here()
            return self._marked

    def killed_for_memory(self) -> bool:
        """Whether the watch killed the device. An allocation that failed inside it is for the device to report."""
        return self._killed

    def close(self) -> bool:
        """End the watch."""
        if self._watch is not None:
            self._watch.drop(self)
        return True

    def look(self) -> None:
        """Take one reading and kill the device when it has been above the limit."""
        with self._lock:
            there = self._read(walk=False)
            if there and self._limit is not None and self._highest > self._limit:
                self._killed = True
                self._kill()

    def _read(self, *, walk: bool) -> bool:
        """Bring the highest mark up to date; inherited pages are counted anew with ``walk``, or near the limit.

        False when the device is gone.
        """
        start = self._start
        now = process.memory(self._pid) if self._pid is not None and self._is_there() else None
        if now is None or start is None:
            return False
        top = now.anonymous
        if self._marked:
            # the mark is of all resident pages; those of files come and hardly ever go, so today's are taken off
            top = max(top, now.highest - (now.resident - now.anonymous))
        grown = self._written.private + top - start.anonymous
        risen = grown + self._copied > self._highest
        if walk or (risen and self._limit is not None and grown + self._copied > _NEAR * self._limit):
            assert self._pid is not None
            pages = process.written(self._pid)
            if pages is not None:
                self._copied = max(self._copied, self._written.inherited - pages.inherited)
        self._highest = max(self._highest, grown + self._copied)
        return True

    def _kill(self) -> None:
        assert self._pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def _count_from_here(self) -> None:
        pid = self._pid
        now = process.memory(pid) if pid is not None else None
        pages = process.written(pid) if pid is not None else None
        if pid is None or now is None or pages is None:
            return
        self._start, self._written, self._copied = now, pages, 0
        self._marked = process.forget_highest(pid)
        self._highest = pages.private

    def _is_there(self) -> bool:
        if self._pid is None:
            return False
        return self._started is None or process.alive(self._pid, self._started)


class Watch:
    """One thread that looks at every group in turn, each ``PERIOD`` seconds while there is one."""

    def __init__(self) -> None:
        self._groups: list[Group] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, group: Group) -> None:
        with self._lock:
            self._groups.append(group)
            if self._thread is None:
                self._wake.clear()
                self._thread = threading.Thread(target=self._run, name="fedge-watch", daemon=True)
                self._thread.start()

    def drop(self, group: Group) -> None:
        with self._lock:
            if group in self._groups:
                self._groups.remove(group)
            thread = self._thread if not self._groups else None
            if thread is not None:
                self._thread = None
                self._wake.set()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._wake.wait(PERIOD):
            with self._lock:
                groups = list(self._groups)
            for group in groups:
                group.look()


@dataclass
class Rlimit:
    """Opens groups that are nothing but a record and a watch; ``enforce`` off leaves only the measuring."""

    enforce: bool = True
    groups: list[Group] = field(default_factory=list)
    _watch: Watch = field(default_factory=Watch, repr=False)

    @property
    def name(self) -> str:
        return "rlimit" if self.enforce else "none"

    @property
    def burst(self) -> int:
        """Bytes that a device may take between two looks, and be killed for at the second."""
        return HEADROOM

    def open(self, run: str, device: str, incarnation: int) -> Group:
        """A group of its own for the device; nothing is made on disk."""
        label = f"{folder.run_name(run)}/{folder.group_name(device, incarnation)}"
        group = Group(label, self.enforce, _watch=self._watch)
        self.groups.append(group)
        return group

    def paths(self) -> list[str]:
        """None: nothing outlives the launcher."""
        return []

    def close(self) -> None:
        """End every watch."""
        for group in self.groups:
            group.close()
        self.groups.clear()
