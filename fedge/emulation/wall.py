"""The memory wall: what a process may hold before it dies of it, and which mechanism this host has for that.

A launcher chooses a wall once, opens a group for every device and incarnation, and keeps ``paths()`` in its run
folder before it forks. A device's process is given the group's ``record()``, and its first act is
``rejoin(record).join()``; the launcher then calls ``adopt(pid)``. ``apply`` and ``lift`` are called on every side
that ``Group.sides`` names: a cgroup is commanded from the launcher, a resource limit from within.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from fedge.emulation import cgroup1, cgroup2, folder, process, rlimit
from fedge.errors import LimitError

MiB = 2**20
PROOF_LIMIT = 16 * MiB
_PROOF_NEED, _PROOF_SECONDS, _BLOCK = 128 * MiB, 10.0, 128 * 1024


class Group(Protocol):
    """One device's share of the host's memory. Sizes are bytes."""

    sides: tuple[str, ...]
    """who calls ``apply`` and ``lift``: 'launcher', 'device', or both"""

    def record(self) -> dict[str, Any]: ...
    def join(self) -> None: ...
    def adopt(self, pid: int) -> None: ...
    def apply(self, limit_bytes: int) -> None: ...
    def lift(self) -> None: ...
    def usage(self) -> int: ...
    def peak(self) -> int: ...
    def reset_peak(self) -> bool: ...
    def killed_for_memory(self) -> bool: ...
    def close(self) -> bool: ...


class Wall(Protocol):
    """A mechanism: 'cgroup1', 'cgroup2', 'rlimit', or 'none', which only measures."""

    @property
    def name(self) -> str: ...
    @property
    def burst(self) -> int:
        """Bytes by which a device may be past its limit for a moment, before it is stopped for it."""
        ...

    def open(self, run: str, device: str, incarnation: int) -> Group: ...
    def paths(self) -> list[str]: ...
    def close(self) -> None: ...


Kind = Literal["auto", "cgroup2", "cgroup1", "rlimit", "none"]

_FIND: dict[str, Callable[[], Wall]] = {
    "cgroup2": lambda: cgroup2.Cgroup2.find(),
    "cgroup1": lambda: cgroup1.Cgroup1.find(),
    "rlimit": lambda: rlimit.Rlimit(),
}
#: Every mechanism that enforces, the best first.
KINDS = tuple(_FIND)


def find(name: str) -> Wall:
    """One mechanism, not yet proved. Raises LimitError where this host lacks it, or there is none of that name."""
    if name not in _FIND:
        raise LimitError(f"there is no memory wall '{name}'", hint=f"auto, {', '.join(KINDS)} or none")
    return _FIND[name]()


def choose(kind: Kind = "auto") -> Wall:
    """The wall of that name, or the best that works here, each proved on a child that allocates past a small limit.

    Raises LimitError with the file or permission that failed. 'none' has to be asked for by name.
    """
    if kind == "none":
        return rlimit.Rlimit(enforce=False)
    if kind not in ("auto", *KINDS):
        find(kind)  # says what there is
    refused = []
    for name in KINDS if kind == "auto" else (kind,):
        try:
            found = find(name)
            prove(found)
            return found
        except LimitError as error:
            if kind != "auto":
                raise LimitError(
                    f"the memory wall '{name}' does not work here: {error.message}", hint=error.hint
                ) from error
            refused.append(f"{name}: {error.message}")
    raise LimitError(
        "no memory wall works on this host:\n  " + "\n  ".join(refused),
        hint="--best-effort goes on without and says so in the run's manifest",
    )


def rejoin(record: dict[str, Any]) -> Group:
    """The group of ``record``, for the device's own process."""
    kind = record["wall"]
    if kind == "cgroup1":
        return cgroup1.Group(record["path"])
    if kind == "cgroup2":
        return cgroup2.Group(record["path"])
    return rlimit.Group(record["label"], enforce=kind == "rlimit")


def prove(wall: Wall) -> int:
    """See a child die, or be refused, at the wall, and see that counted; LimitError when either fails to happen.

    Returns the bytes that the child had taken beyond its start when it was stopped at ``PROOF_LIMIT``.
    """
    group = wall.open("proof", "device", 0)
    taken = mmap.mmap(-1, mmap.PAGESIZE)  # shared with the child: how many blocks it holds
    parent = os.getpid()
    to_child, from_child = os.pipe(), os.pipe()
    try:
        with warnings.catch_warnings():
            # the child runs a few system calls and no lock: a thread elsewhere in the launcher can't hold it up
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _proof_child(group.record(), to_child, from_child, parent, taken)
        ended = False
        try:
            os.close(from_child[1])
            _await(from_child[0], "the self-test's child could not join its group")
            group.adopt(pid)
            if "launcher" in group.sides:
                group.apply(PROOF_LIMIT)
            os.write(to_child[1], b"g")
            status = _reap(pid)
            ended = True
        finally:
            if not ended:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
        _judge(group, status)
        return int.from_bytes(taken[:4], "little") * _BLOCK
    finally:
        for end in (*to_child, from_child[0]):
            os.close(end)
        # the next to open a group is the run itself: nothing of the proof may be left
        wall.close()


def _judge(group: Group, status: int) -> None:
    died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and group.killed_for_memory()
    refused = "device" in group.sides and os.WIFEXITED(status) and os.WEXITSTATUS(status) == 3
    if not (died or refused):
        raise LimitError(
            f"a child allocated {_PROOF_NEED // MiB} MiB past a limit of {PROOF_LIMIT // MiB} MiB "
            f"and was not stopped (it ended with status {status})"
        )


def _proof_child(
    record: dict[str, Any], orders: tuple[int, int], answers: tuple[int, int], parent: int, taken: mmap.mmap
) -> None:
    code = 5
    try:
        # it holds both ends of its pipes, so that a launcher that is killed now would be waited for for ever
        process.die_with_parent(parent=parent)
        mine = rejoin(record)
        mine.join()
        if "device" in mine.sides:
            mine.apply(PROOF_LIMIT)
        os.write(answers[1], b"j")
        os.read(orders[0], 1)
        held = []
        while len(held) * _BLOCK < _PROOF_NEED:
            held.append(mmap.mmap(-1, _BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            for start in range(0, _BLOCK, mmap.PAGESIZE):
                held[-1][start] = 1
            taken[:4] = len(held).to_bytes(4, "little")
        code = 0
    except BaseException as error:
        code = 3 if is_allocation_failure(error) else 4
    finally:
        os._exit(code)


def _await(end: int, complaint: str) -> None:
    ready, _, _ = select.select([end], [], [], _PROOF_SECONDS)
    if not ready or not os.read(end, 1):
        raise LimitError(complaint)


def _reap(pid: int) -> int:
    end = time.monotonic() + _PROOF_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    raise LimitError("the self-test's child neither died at the wall nor ended")


def is_allocation_failure(error: BaseException) -> bool:
    """Whether ``error`` says that the process was refused memory: Python's, the system's or torch's own kind."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "std::bad_alloc" in text)


def sweep(paths: Iterable[str], *, mounts: Sequence[Path] | None = None) -> list[str]:
    """Remove the groups that a killed launcher left; the paths that still hold processes come back.

    Only what was recorded, lies in a mounted cgroup hierarchy (or below ``mounts``), is or lies in a folder of
    fedge's naming, and is empty. The caller makes sure that the launcher is gone.
    """
    tops = [mount.point for mount, _, _ in folder.all_mounts()] if mounts is None else list(mounts)
    busy = []
    # inner folders first: the run's own is empty only when they are gone
    for path in sorted({Path(text) for text in paths}, key=lambda path: (-len(path.parts), path)):
        if _is_ours(path, tops) and not folder.remove(path):
            busy.append(str(path))
    return busy


def _is_ours(path: Path, tops: Sequence[Path]) -> bool:
    if not path.is_absolute() or ".." in path.parts or path.is_symlink():
        return False
    named = path.name.startswith(folder.PREFIX) or path.parent.name.startswith(folder.PREFIX)
    return named and any(path.resolve().is_relative_to(top.resolve()) for top in tops)
