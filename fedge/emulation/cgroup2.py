"""The memory wall by cgroup version 2. Tested against a faked file tree; not yet exercised on a real version 2 host.

Version 2 lets a group hand the memory controller to its children only while no process sits in it (the top of the
hierarchy apart). So the groups go into the first of these that will have them:

1. the launcher's own group, if it hands on memory already, is the top, or holds nobody but the launcher and its
   descendants: those are then moved into a leaf beside the devices and moved back by ``close``
   (``systemd-run --user --scope -p Delegate=yes fedge up …`` gives such a group to anyone);
2. the group above it, if it hands on memory already (a systemd user slice).

The limit acts on all that is charged, file cache included, but clean cache is reclaimed before anyone is killed.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fedge.emulation import folder
from fedge.errors import LimitError


@dataclass
class Group:
    """One device's group; also in the device's process, where only ``join`` is of use."""

    path: str
    sides: tuple[str, ...] = ("launcher",)
    _peak: int | None = field(default=None, repr=False)

    def record(self) -> dict[str, Any]:
        return {"wall": "cgroup2", "path": self.path}

    def join(self) -> None:
        """Move the calling process in; call right after the fork, for pages charged before stay with the old group."""
        folder.write(Path(self.path, "cgroup.procs"), "0")

    def adopt(self, pid: int) -> None:
        """Nothing to do: the kernel knows who is inside."""

    def apply(self, limit_bytes: int) -> None:
        """Kill whoever takes the group above ``limit_bytes``; at once when it is above already."""
        folder.write(Path(self.path, "memory.max"), str(limit_bytes))

    def lift(self) -> None:
        """Take the limit away; nothing happens when the group is gone."""
        if Path(self.path, "memory.max").exists():
            folder.write(Path(self.path, "memory.max"), "max")

    def usage(self) -> int:
        """Bytes that the limit counts and could not reclaim: anonymous and shared memory, page tables, stacks."""
        here = Path(self.path)
        table = folder.read_table(here / "memory.stat")
        files = table.get("file", 0) - table.get("shmem", 0)
        return max(0, folder.read_number(here / "memory.current") - files)

    def peak(self) -> int:
        """The most that was charged at once since ``reset_peak``, file cache included: what the limit saw.

        Kernels before 5.19 don't keep it; there it is what is charged now.
        """
        if self._peak is not None:
            return int(os.pread(self._peak, 32, 0))
        here = Path(self.path)
        return folder.read_number(here / "memory.peak", folder.read_number(here / "memory.current"))

    def reset_peak(self) -> bool:
        """Drop the group's file cache where the kernel can and start ``peak`` anew; False before kernel 6.12.

        The kernel resets the peak for one open file only, which is therefore kept until ``close``.
        """
        here = Path(self.path)
        files = folder.read_table(here / "memory.stat").get("inactive_file", 0)
        if files and (here / "memory.reclaim").exists():
            # it may reclaim less than asked, or not know swappiness: cache may stay, memory must not go
            with contextlib.suppress(LimitError):
                folder.write(here / "memory.reclaim", f"{files} swappiness=0")
        try:
            if self._peak is None:
                self._peak = os.open(here / "memory.peak", os.O_RDWR)
            os.pwrite(self._peak, b"reset", 0)
        except OSError:
            self._forget()
            return False
        return True

    def killed_for_memory(self) -> bool:
        """Whether this limit killed someone; a kill for the host's own shortage leaves ``oom`` at 0."""
        table = folder.read_table(Path(self.path, "memory.events"))
        return table.get("oom_kill", 0) > 0 and table.get("oom", 0) > 0

    def close(self) -> bool:
        """Remove the group once its processes have ended; False while one is left. Gone already is fine."""
        self._forget()
        return folder.remove(Path(self.path))

    def _forget(self) -> None:
        if self._peak is not None:
            os.close(self._peak)
            self._peak = None


@dataclass
class Cgroup2:
    """Opens groups in ``parent``, whose control of memory it hands on."""

    parent: Path
    top: Path
    """where the hierarchy is mounted"""
    name: str = "cgroup2"
    burst: int = 0
    groups: list[Group] = field(default_factory=list)
    _run: Path | None = None
    _leaf: Path | None = None

    @classmethod
    def find(cls, mount: folder.Mount | None = None, own: str | None = None) -> Cgroup2:
        """The group to work in (see the module's text); LimitError says what keeps each candidate from serving."""
        mount = mount or folder.find_mount("cgroup2")
        if mount is None:
            raise LimitError("no cgroup v2 hierarchy is mounted")
        mine = mount.folder(folder.own_group("") if own is None else own)
        refused = []
        for candidate in (mine, mine.parent) if mine != mount.point else (mine,):
            reason = _unfit(candidate, own=candidate == mine)
            if reason is None:
                return cls(candidate, mount.point)
            refused.append(f"{candidate}: {reason}")
        raise LimitError(
            "; ".join(refused),
            hint="start it in a group of its own: systemd-run --user --scope -p Delegate=yes fedge …",
        )

    def open(self, run: str, device: str, incarnation: int) -> Group:
        """Make the group ``fedge-<run>-<pid>/<device>.<incarnation>``; LimitError names the file that refused."""
        if self._run is None:
            folder.remove_abandoned(run, self.parent)
            self._run = self._prepare(self.parent / folder.run_name(run))
        here = self._run / folder.group_name(device, incarnation)
        folder.make(here)
        group = Group(str(here))
        self.groups.append(group)
        for name, text in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            if (here / name).exists():  # neither is there on every kernel
                folder.write(here / name, text)
        return group

    def paths(self) -> list[str]:
        """Every folder made so far, inner ones first: what ``sweep`` needs should the launcher be killed."""
        outer = [str(path) for path in (self._run, self._leaf) if path]
        return [group.path for group in self.groups] + outer

    def close(self) -> None:
        """Remove every group that is left, and put the launcher back where it was."""
        for group in self.groups:
            group.close()
        self.groups.clear()
        if self._run is not None:
            folder.remove(self._run)
            self._run = None
        if self._leaf is not None:
            leaf, self._leaf = self._leaf, None
            folder.write(self.parent / "cgroup.subtree_control", "-memory")
            _move(_members(leaf), self.parent)
            folder.remove(leaf)

    def _prepare(self, run: Path) -> Path:
        if "memory" not in _words(self.parent / "cgroup.subtree_control"):
            members = [] if _is_top(self.parent) else _members(self.parent)
            if members:
                leaf = self.parent / f"{folder.PREFIX}launcher-{os.getpid()}"
                folder.make(leaf)
                self._leaf = leaf
                _move(members, leaf)
            folder.write(self.parent / "cgroup.subtree_control", "+memory")
        folder.make(run)
        folder.write(run / "cgroup.subtree_control", "+memory")
        return run


def _unfit(group: Path, *, own: bool) -> str | None:
    """Why devices' groups can't go into ``group``, or None when they can."""
    if "memory" not in _words(group / "cgroup.controllers"):
        return "cgroup.controllers doesn't list memory"
    for name in ("", "cgroup.procs", "cgroup.subtree_control"):
        if not os.access(group / name, os.W_OK):
            return f"no permission to write {name or 'there'}"
    if "memory" in _words(group / "cgroup.subtree_control") or _is_top(group):
        return None
    if not own:
        return "cgroup.subtree_control doesn't hand on memory"
    strangers = set(_members(group)) - _family()
    if strangers:
        return f"cgroup.procs holds processes that are not fedge's ({', '.join(map(str, sorted(strangers)))})"
    return None


def _is_top(group: Path) -> bool:
    # only the real top of the hierarchy lacks this file: the top that a container sees has it
    return not (group / "cgroup.type").exists()


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _members(group: Path) -> list[int]:
    return [int(word) for word in _words(group / "cgroup.procs")]


def _family() -> set[int]:
    return {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}


def _move(pids: list[int], group: Path) -> None:
    for pid in pids:
        try:
            folder.write(group / "cgroup.procs", str(pid))
        except LimitError:
            if psutil.pid_exists(pid):
                raise
