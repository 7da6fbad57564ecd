"""The memory wall by the memory controller of cgroup version 1.

A group counts every page to whoever touched it first, so a forked device is charged for what it writes and not for
what it inherits. The limit acts on everything that is charged, file cache included, but clean cache is reclaimed
before anyone is killed, so it cannot change a verdict. It can raise ``peak``: let the zygote read every file (imports,
models, data) beforehand, and call ``reset_peak``, which first has the kernel drop the group's cache.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedge.emulation import folder
from fedge.errors import LimitError

_BYTES = "memory.limit_in_bytes"
_WITH_SWAP = "memory.memsw.limit_in_bytes"
_PEAK = "memory.max_usage_in_bytes"
_CHARGE = 256 * 1024  # the kernel charges in advance by up to so much


@dataclass
class Group:
    """One device's group; also in the device's process, where only ``join`` is of use."""

    path: str
    sides: tuple[str, ...] = ("launcher",)

    def record(self) -> dict[str, Any]:
        return {"wall": "cgroup1", "path": self.path}

    def join(self) -> None:
        """Move the calling process in; call right after the fork, for pages charged before stay with the old group."""
        folder.write(Path(self.path, "cgroup.procs"), "0")

    def adopt(self, pid: int) -> None:
        """Nothing to do: the kernel knows who is inside."""

    def apply(self, limit_bytes: int) -> None:
        """Kill whoever takes the group above ``limit_bytes``; swapping out is no way round it.

        Raises LimitError when more than that is charged already (version 1 refuses the limit then, and kills nobody).
        """
        here = Path(self.path)
        # the limit with swap may never lie below the one without, so it has to be out of the way first
        if (here / _WITH_SWAP).exists():
            folder.write(here / _WITH_SWAP, "-1")
        try:
            folder.write(here / _BYTES, str(limit_bytes))
        except LimitError as error:
            if getattr(error.__cause__, "errno", None) != errno.EBUSY:
                raise
            raise LimitError(f"{self.path} holds {self.usage()} bytes already, more than {limit_bytes}") from error
        if (here / _WITH_SWAP).exists():
            folder.write(here / _WITH_SWAP, str(limit_bytes))

    def lift(self) -> None:
        """Take the limit away; nothing happens when the group is gone."""
        for name in (_WITH_SWAP, _BYTES):
            if Path(self.path, name).exists():
                folder.write(Path(self.path, name), "-1")

    def usage(self) -> int:
        """Bytes that the limit counts and could not reclaim: anonymous and shared memory, page tables, stacks."""
        here = Path(self.path)
        table = folder.read_table(here / "memory.stat")
        files = table.get("total_cache", 0) - table.get("total_shmem", 0)
        return max(0, folder.read_number(here / "memory.usage_in_bytes") - files)

    def peak(self) -> int:
        """The most that was charged at once since ``reset_peak``, file cache included: what the limit saw."""
        return folder.read_number(Path(self.path, _PEAK))

    def reset_peak(self) -> bool:
        """Drop the group's file cache and start ``peak`` anew from what is left."""
        folder.write(Path(self.path, "memory.force_empty"), "0")
        folder.write(Path(self.path, _PEAK), "0")
        return True

    def killed_for_memory(self) -> bool:
        """Whether this limit killed someone. A kill for the host's own shortage is counted too, but below the limit."""
        here = Path(self.path)
        killed = folder.read_table(here / "memory.oom_control").get("oom_kill", 0) > 0
        # failcnt would say it, but some kernels don't count it where the limit with swap is hit first
        return killed and self.peak() + _CHARGE >= folder.read_number(here / _BYTES)

    def close(self) -> bool:
        """Remove the group once its processes have ended; False while one is left. Gone already is fine."""
        return folder.remove(Path(self.path))


@dataclass
class Cgroup1:
    """Opens groups below the launcher's own, so that limits already on the launcher still hold for its devices."""

    parent: Path
    name: str = "cgroup1"
    burst: int = 0
    groups: list[Group] = field(default_factory=list)
    _top: Path | None = None

    @classmethod
    def find(cls) -> Cgroup1:
        """The memory hierarchy of this host; LimitError when version 1 is not mounted with one."""
        mount = folder.find_mount("cgroup", "memory")
        if mount is None:
            raise LimitError("no cgroup v1 hierarchy with the memory controller is mounted")
        return cls(mount.folder(folder.own_group("memory")))

    def open(self, run: str, device: str, incarnation: int) -> Group:
        """Make the group ``fedge-<run>-<pid>/<device>.<incarnation>``; LimitError names the folder that refused."""
        top = self.parent / folder.run_name(run)
        if not top.is_dir():
            folder.remove_abandoned(run, self.parent)
            folder.make(top)
        self._top = top
        here = top / folder.group_name(device, incarnation)
        folder.make(here)
        # no use of swap within the group; the file is missing where the kernel has no swap at all
        if (here / "memory.swappiness").exists():
            folder.write(here / "memory.swappiness", "0")
        group = Group(str(here))
        self.groups.append(group)
        return group

    def paths(self) -> list[str]:
        """Every folder made so far, inner ones first: what ``sweep`` needs should the launcher be killed."""
        return [group.path for group in self.groups] + ([str(self._top)] if self._top else [])

    def close(self) -> None:
        """Remove every group that is left, and the run's folder."""
        for group in self.groups:
            group.close()
        self.groups.clear()
        if self._top is not None:
            folder.remove(self._top)
            self._top = None
