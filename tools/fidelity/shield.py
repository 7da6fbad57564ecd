"""Going first: what others take of the host is no fault of a limit's, so what is measured is favoured over them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedge.emulation import folder
from fedge.errors import LimitError

#: The weight of a group of the cpu controller; 1024 is everybody else's.
_WEIGHT = 1 << 18


@contextmanager
def shielded() -> Iterator[bool]:
    """Put this process, and all that it starts, into a group that goes first; whether that could be done here."""
    mount = folder.find_mount("cgroup", "cpu")
    if mount is None:
        yield False
        return
    before = mount.folder(folder.own_group("cpu"))
    here = before / f"{folder.PREFIX}shield-{os.getpid()}"
    try:
        folder.make(here)
        folder.write(here / "cpu.shares", str(_WEIGHT))
        _move(here)
    except LimitError:
        with suppress(OSError):
            here.rmdir()
        yield False
        return
    try:
        yield True
    finally:
        _move(before)
        folder.remove(here)


def _move(group: Path) -> None:
    folder.write(group / "cgroup.procs", str(os.getpid()))
