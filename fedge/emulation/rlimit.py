"""A memory wall for hosts without cgroups: RLIMIT_DATA in the device, and a watch on its pages by the launcher.

The resource limit counts private writable address space, so it stops an allocation before a page of it is touched:
the device sees an error (``is_allocation_failure``) rather than a kill. Writing to pages inherited from the zygote
costs no address space and escapes it; so does a block that fits a hole of the inherited heap, and memory on systems
where the limit has no effect. The watch is there for those: a thread that reads each device's resident anonymous
pages every 10 ms and kills above the limit. What it can't see is an inherited page replaced by a written copy, which
leaves that count as it was; ``usage`` does see it.
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
    _start: int = 0
    """anonymous bytes and, below it, resident bytes where counting began; both stand for ``_held`` private bytes"""
    _resident: int = 0
    _held: int = 0
    _highest: int = 0
    _killed: bool = False

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
        """In the device: no more than ``limit_bytes`` of its own from now on. In the launcher: kill above that."""
        if not self.enforce:
            return
        if self._started is not None:
            self._limit = limit_bytes
            return
        now = process.memory(os.getpid())
        if now is None:
            raise LimitError(f"{self.label}: this system doesn't tell a process's memory, so it can't be limited")
        room = max(0, limit_bytes - self.usage())
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
        return (process.private(self._pid) or 0) if self._pid is not None and self._is_there() else 0

    def peak(self) -> int:
        """The most that the device held at once since ``reset_peak``, as the watch saw it."""
        self.look()
        return self._highest

    def reset_peak(self) -> bool:
        """Start ``peak`` anew; False where the kernel's own mark can't be reset, so that only looks count."""
        self._count_from_here()
        return self._resident > 0

    def killed_for_memory(self) -> bool:
        """Whether the watch killed the device. An allocation that failed inside it is for the device to report."""
        return self._killed

    def close(self) -> bool:
        """End the watch."""
        if self._watch is not None:
            self._watch.drop(self)
        return True

    def look(self) -> None:
        """Take one reading and kill the device when it is above the limit."""
        now = process.memory(self._pid) if self._pid is not None and self._is_there() else None
        if now is None:
            return
        held = self._held + now.anonymous - self._start
        # the kernel's mark catches what came and went between two looks
        marked = self._held + now.highest - self._resident if self._resident else 0
        self._highest = max(self._highest, held, marked)
        if self._limit is not None and held > self._limit:
            self._killed = True
            self._kill()

    def _kill(self) -> None:
        assert self._pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def _count_from_here(self) -> None:
        pid = self._pid
        now = process.memory(pid) if pid is not None else None
        if pid is None or now is None:
            return
        self._start, self._held = now.anonymous, process.private(pid) or 0
        self._resident = now.resident if process.forget_highest(pid) else 0
        self._highest = self._held

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
