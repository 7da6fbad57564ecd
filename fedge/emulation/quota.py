"""A share of a core: how a process is kept from computing faster than its device would.

Three mechanisms behind one small interface. ``cgroup1`` and ``cgroup2`` hand the share to the kernel as a quota for
every 100 ms (with 10 ms the kernel's least quota of 1 ms is a tenth of a core, and full speed becomes 91 %). ``duty``
needs no permission: the launcher stops and continues the process so that the processor time it *used* follows the
share, which forgets no error; what it must never do is to leave a process stopped.

A share limits processor time. The work done in it suffers more: at small shares training was measured to run 17 to
42 % slower than its share says, for its caches are cold after every pause.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fedge.emulation import folder
from fedge.errors import LimitError

PERIOD = 0.1
"""Seconds over which a share holds."""
_LIBC = ctypes.CDLL(None)


class Throttle(Protocol):
    """One device's processor time. ``share`` counts cores: 0.25 is a quarter of one, 2 are two."""

    def join(self, pid: int) -> None: ...
    def apply(self, share: float) -> None: ...
    def lift(self) -> None: ...
    def close(self) -> None: ...


@dataclass
class Cgroup1Quota:
    """A group of the cpu controller of cgroup version 1."""

    path: Path
    _parent: Path = field(repr=False)

    @classmethod
    def open(cls, run: str, device: str) -> Cgroup1Quota:
        """A group below the launcher's own; LimitError when there is no such hierarchy or it can't be written."""
        mount = folder.find_mount("cgroup", "cpu")
        if mount is None:
            raise LimitError("no cgroup v1 hierarchy with the cpu controller is mounted")
        top = mount.folder(folder.own_group("cpu")) / folder.run_name(run)
        if not top.is_dir():
            folder.make(top)
        here = top / folder.safe_name(device)
        folder.make(here)
        if not (here / "cpu.cfs_quota_us").exists():
            folder.remove(here)
            raise LimitError(f"{here} has no cpu.cfs_quota_us: this kernel keeps no quotas")
        return cls(here, top)

    def join(self, pid: int) -> None:
        """Move a process in, with all its threads."""
        folder.write(self.path / "cgroup.procs", str(pid))

    def apply(self, share: float) -> None:
        folder.write(self.path / "cpu.cfs_period_us", str(round(PERIOD * 1e6)))
        folder.write(self.path / "cpu.cfs_quota_us", str(round(share * PERIOD * 1e6)))

    def lift(self) -> None:
        if (self.path / "cpu.cfs_quota_us").exists():
            folder.write(self.path / "cpu.cfs_quota_us", "-1")

    def close(self) -> None:
        """Remove the group, once its process has ended, and the run's folder when it is empty."""
        folder.remove(self.path)
        with contextlib.suppress(OSError):
            self._parent.rmdir()


@dataclass
class Cgroup2Quota:
    """A group of cgroup version 2 whose parent hands on the cpu controller. Tested against a faked file tree only."""

    path: Path

    @classmethod
    def open(cls, run: str, device: str, mount: folder.Mount | None = None, own: str | None = None) -> Cgroup2Quota:
        """A group below the launcher's own; LimitError names what keeps it from serving.

        systemd hands on memory and pids to a user's slice by default, and not cpu.
        """
        mount = mount or folder.find_mount("cgroup2")
        if mount is None:
            raise LimitError("no cgroup v2 hierarchy is mounted")
        parent = mount.folder(folder.own_group("") if own is None else own)
        try:
            handed_on = (parent / "cgroup.subtree_control").read_text().split()
        except OSError as error:
            raise folder.refusal("cannot read", parent / "cgroup.subtree_control", error) from error
        if "cpu" not in handed_on:
            raise LimitError(
                f"{parent / 'cgroup.subtree_control'} doesn't hand on cpu",
                hint="systemd-run --user --scope -p Delegate='cpu memory pids' fedge …",
            )
        here = parent / f"{folder.run_name(run)}-{folder.safe_name(device)}"
        folder.make(here)
        return cls(here)

    def join(self, pid: int) -> None:
        """Move a process in, with all its threads."""
        folder.write(self.path / "cgroup.procs", str(pid))

    def apply(self, share: float) -> None:
        folder.write(self.path / "cpu.max", f"{round(share * PERIOD * 1e6)} {round(PERIOD * 1e6)}")

    def lift(self) -> None:
        if (self.path / "cpu.max").exists():
            folder.write(self.path / "cpu.max", f"max {round(PERIOD * 1e6)}")

    def close(self) -> None:
        """Remove the group, once its process has ended."""
        folder.remove(self.path)


class Duty:
    """Stop and continue a process so that its processor time follows the share: no permission is needed.

    Each period the process may use what it has earned since ``apply`` and not used yet, at most a period's worth of
    debt or credit. ``used(pid)`` gives the processor seconds that a process has used, None when it is gone.
    """

    def __init__(self, used: Callable[[int], float | None] | None = None):
        self._used = used or processor_seconds
        self._pid: int | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def join(self, pid: int) -> None:
        """Take charge of a process."""
        self._pid = pid

    def apply(self, share: float) -> None:
        """Keep the process at the share from now on. Raises LimitError when it is gone."""
        self.lift()
        assert self._pid is not None, "join comes first"
        if self._used(self._pid) is None:
            raise LimitError(f"process {self._pid} is gone")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, args=(self._pid, share, self._end), daemon=True)
        self._thread.start()

    def lift(self) -> None:
        """Let the process run freely."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        self.lift()

    def _keep(self, pid: int, share: float, end: threading.Event) -> None:
        stopped = False
        begun, first = time.monotonic(), self._used(pid) or 0.0
        try:
            while not end.is_set():
                spent = self._used(pid)
                if spent is None:
                    return
                # ahead: seconds of processor time that it has used beyond what it has earned by now
                ahead = (spent - first) - share * (time.monotonic() - begun)
                if ahead < -PERIOD:  # it had nothing to do; what it didn't use then is gone, as on a device
                    begun, first = time.monotonic(), spent
                if ahead > 0 and not stopped:
                    os.kill(pid, signal.SIGSTOP)
                    stopped = True
                elif ahead <= 0 and stopped:
                    os.kill(pid, signal.SIGCONT)
                    stopped = False
                # stopped: until it has earned what it is ahead; running: a part of what it earns in a period
                pause = ahead / share if stopped else min(PERIOD * share, PERIOD / 4)
                end.wait(max(0.001, min(pause, PERIOD / share)))
        except ProcessLookupError:
            return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def processor_seconds(pid: int) -> float | None:
    """Seconds of processor time that ``pid`` and its threads have used, None when it is gone or can't be told."""
    clock = ctypes.c_int()
    # nanoseconds; the fields of /proc/PID/stat count in hundredths of a second, too coarse for a small share
    if not hasattr(_LIBC, "clock_getcpuclockid") or _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)) != 0:
        return None
    try:
        return time.clock_gettime(clock.value)
    except OSError:
        return None


KINDS: dict[str, Callable[[str, str], Throttle]] = {
    "cgroup2": lambda run, device: Cgroup2Quota.open(run, device),
    "cgroup1": lambda run, device: Cgroup1Quota.open(run, device),
    "duty": lambda run, device: Duty(),
}
"""Every mechanism by name, the best first: each opens a throttle for a device of a run, or raises LimitError."""


def choose(wall: str) -> str:
    """The best mechanism that works here beside the memory wall of that name, tried on a child.

    Version 2 has one tree: a process in a group of its memory wall can't be in another for its quota. Raises LimitError
    when nothing works.
    """
    refused = []
    for name in KINDS:
        if name == wall == "cgroup2" or (name == wall == "cgroup1" and _one_tree()):
            refused.append(f"{name}: the memory wall has the process in a group of its own there")
            continue
        try:
            _prove(KINDS[name]("proof", f"cpu-{name}"))
            return name
        except LimitError as error:
            refused.append(f"{name}: {error.message}")
    raise LimitError(
        "no quota of processor time works on this host:\n  " + "\n  ".join(refused),
        hint="--best-effort goes on by waiting alone; clock: virtual needs no quota",
    )


def _one_tree() -> bool:
    """Whether version 1 has memory and cpu in one hierarchy."""
    return folder.find_mount("cgroup", "cpu") == folder.find_mount("cgroup", "memory")


def _prove(throttle: Throttle) -> None:
    """Put a child under a quota and take it off again."""
    child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
    try:
        throttle.join(child.pid)
        throttle.apply(0.5)
        throttle.lift()
    finally:
        child.kill()
        child.wait()
        throttle.close()
