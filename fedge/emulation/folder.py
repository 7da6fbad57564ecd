"""Folders of the cgroup file system: finding ours, naming groups, reading, writing and removing them."""

from __future__ import annotations

import errno
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from fedge.emulation import process
from fedge.errors import LimitError

PREFIX = "fedge-"
"""What the name of every folder starts with that fedge makes beside other people's groups."""


def safe_name(text: str) -> str:
    """``text`` as one file name: no separator, no leading dot, at most 80 characters."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text).lstrip(".")[:80] or "_"


def run_name(run: str) -> str:
    """The folder of a run's groups; the launcher's pid keeps two launchers of one run apart."""
    return f"{PREFIX}{safe_name(run)}-{os.getpid()}"


def remove_abandoned(run: str, parent: Path) -> None:
    """Remove the groups of ``run`` in ``parent`` whose launcher, the pid in their name, was killed."""
    stem = f"{PREFIX}{safe_name(run)}-"
    for top in parent.glob(f"{stem}*"):
        pid = top.name.removeprefix(stem)
        if pid.isdigit() and process.start_time(int(pid)) is None:
            for path in (*(path for path in top.glob("*") if path.is_dir()), top):
                remove(path)


def group_name(device: str, incarnation: int) -> str:
    return f"{safe_name(device)}.{incarnation}"


@dataclass(frozen=True)
class Mount:
    """A mounted cgroup hierarchy: the part of it that is shown (``root``) and where (``point``)."""

    root: str
    point: Path

    def folder(self, group: str) -> Path:
        """Where the group of that path (as in /proc/self/cgroup) lies; the mount's own top when it is out of sight."""
        shown = group
        if self.root != "/":
            shown = group[len(self.root) :] if group == self.root or group.startswith(self.root + "/") else ""
        found = self.point / shown.lstrip("/")
        return found if ".." not in shown.split("/") and found.is_dir() else self.point


def find_mount(kind: str, option: str | None = None, table: str = "/proc/self/mountinfo") -> Mount | None:
    """The first mount of file system ``kind`` ('cgroup', 'cgroup2') that carries the option ('memory' on v1)."""
    for mount in all_mounts(table):
        point, fs, options = mount
        if fs == kind and (option is None or option in options.split(",")):
            return point
    return None


def all_mounts(table: str = "/proc/self/mountinfo") -> list[tuple[Mount, str, str]]:
    """Every cgroup mount as (mount, file system, options)."""
    try:
        lines = Path(table).read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        left, separator, right = line.partition(" - ")
        head, tail = left.split(), right.split()
        if separator and tail and tail[0] in ("cgroup", "cgroup2"):
            point = head[4].encode().decode("unicode_escape")  # the kernel writes a blank as \040
            found.append((Mount(head[3], Path(point)), tail[0], tail[-1]))
    return found


def own_group(controller: str, table: str = "/proc/self/cgroup") -> str:
    """This process's group in the hierarchy of ``controller`` ('' for version 2), '/' when it isn't listed."""
    try:
        lines = Path(table).read_text().splitlines()
    except OSError:
        return "/"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return "/"


def make(path: Path) -> None:
    """Make the folder, or raise LimitError naming it."""
    try:
        path.mkdir()
    except OSError as error:
        raise refusal("cannot make the group", path, error) from error


def write(path: Path, text: str) -> None:
    """Write one control file, or raise LimitError naming it. Never creates: a missing file means a missing feature."""
    try:
        handle = os.open(path, os.O_WRONLY)
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)
    except OSError as error:
        raise refusal(f"cannot write '{text}' to", path, error) from error


def refusal(doing: str, path: Path, error: OSError) -> LimitError:
    hint = None
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = (
            "run as root, in a delegated systemd scope (systemd-run --user --scope -p Delegate=yes fedge …), "
            "or take 'rlimit'"
        )
    return LimitError(f"{doing} {path}: {os.strerror(error.errno or 0)}", hint=hint)


def read_number(path: Path, missing: int = 0) -> int:
    """The number in a control file; ``missing`` when there is no such file or it says 'max'."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return missing


def read_table(path: Path) -> dict[str, int]:
    """A control file of 'name number' lines; empty when it is gone."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.strip().isdigit()}


def remove(path: Path, patience: float = 1.0) -> bool:
    """Remove an empty group; a group whose last process has just died stays busy for some milliseconds.

    True when it is gone (or never was); False when it is still held after ``patience`` seconds.
    """
    end = time.monotonic() + patience
    while True:
        try:
            path.rmdir()
            return True
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY, errno.EINTR) or time.monotonic() >= end:
                return False
        time.sleep(0.005)
