"""What the kernel says of a tree of processes: processor time, memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path


def tree(pid: int, without: Collection[int] = ()) -> Iterator[int]:
    """A process and all below it, but for ``without`` and what is below those."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = [int(word) for word in children.read_text().split()]
        except OSError:
            continue
        for child in found:
            if child not in without:
                yield from tree(child, without)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of processes and all their threads, from the scheduler's own counters."""
    total = 0
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(path.read_text().split()[0])
            except OSError:
                continue
    return total / 1e9


def memory(pid: int, *kinds: str) -> int:
    """Bytes of a process by the kernel's roll-up of its mappings: 'Pss', 'Private_Clean', …; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.split(":")[0] in kinds)


def name(pid: int) -> str:
    """What a process calls itself; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
