"""What one process can be told or asked: its parent's death, its cores, its name, its identity, its memory."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedge.errors import LimitError

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_LINUX = sys.platform.startswith("linux")


def _prctl(option: int, value: int | bytes) -> bool:
    if not _LINUX:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    return bool(libc.prctl(option, argument, 0, 0, 0) == 0)


def die_with_parent(sig: int = signal.SIGKILL, *, parent: int | None = None) -> bool:
    """Ask the kernel to send ``sig`` to this process when the thread that forked it ends; False where it can't.

    ``parent`` is the pid that the forking process had: with it, a parent that ended before the request took hold is
    noticed, and the signal is raised here at once. Without it only adoption by process 1 is noticed.
    """
    if not _prctl(_PR_SET_PDEATHSIG, sig):
        return False
    now = os.getppid()
    if (parent is not None and now != parent) or (parent is None and now == 1):
        os.kill(os.getpid(), sig)
    return True


def set_name(name: str) -> bool:
    """Show ``name`` (its first 15 bytes) in ps and top; False where the system has no such call."""
    return _prctl(_PR_SET_NAME, name.encode("utf-8", "replace")[:15])


def cores() -> set[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def set_affinity(wanted: Iterable[int]) -> None:
    """Keep this process on the ``wanted`` cores.

    Raises LimitError when one of them is not there or not granted to this process, and where the system can't pin.
    """
    chosen, granted = set(wanted), cores()
    if not chosen or not chosen <= granted:
        missing = ", ".join(map(str, sorted(chosen - granted))) or "none named"
        raise LimitError(f"core {missing} is not among this process's cores {_listed(granted)}")
    if not hasattr(os, "sched_setaffinity"):
        raise LimitError("this system cannot pin a process to cores", hint="leave out 'cpu:N'")
    os.sched_setaffinity(0, chosen)


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def start_time(pid: int) -> int | None:
    """When ``pid`` was started, in clock ticks since boot (elsewhere centiseconds of the epoch); None if it is gone.

    A pid comes back into use; a pid with its start time does not.
    """
    fields = _stat(pid)
    if fields is not None:
        return int(fields[19])
    if _LINUX:
        return None
    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.Error:
        return None


def alive(pid: int, started: int | None) -> bool:
    """Whether the process that had ``pid`` and start time ``started`` still runs; a zombie does not."""
    fields = _stat(pid)
    if fields is not None:
        return started is not None and int(fields[19]) == started and fields[0] not in "ZX"
    if _LINUX or started is None:
        return False
    try:
        return start_time(pid) == started and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on: a name may hold blanks and brackets, so split after the last."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 1 :].split()


@dataclass(frozen=True)
class Memory:
    """One reading of a process's memory, in bytes."""

    anonymous: int
    """resident pages that no file backs, those still shared with the parent included"""
    resident: int
    highest: int
    """the most that ``resident`` was since the last ``forget_highest``"""
    data: int
    """private writable address space: what RLIMIT_DATA counts"""


def memory(pid: int) -> Memory | None:
    """The memory of ``pid``, or None when it is gone or a zombie."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return None if _LINUX else _memory_elsewhere(pid)
    sizes = {key: int(rest.split()[0]) * 1024 for key, _, rest in (s.partition(":") for s in lines) if "kB" in rest}
    if "VmRSS" not in sizes:
        return None
    return Memory(
        anonymous=sizes["RssAnon"] + sizes.get("RssShmem", 0),
        resident=sizes["VmRSS"],
        highest=sizes["VmHWM"],
        data=sizes["VmData"],
    )


def _memory_elsewhere(pid: int) -> Memory | None:
    try:
        rss = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None
    return Memory(anonymous=rss, resident=rss, highest=rss, data=rss)


def forget_highest(pid: int) -> bool:
    """Start ``Memory.highest`` anew from what is resident now; False where the kernel does not let us."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Written:
    """One walk over a process's pages, in bytes."""

    private: int
    """what it alone holds and has written"""
    inherited: int
    """anonymous pages that it still shares with the process that forked it"""


def written(pid: int) -> Written | None:
    """The pages of ``pid`` by whose they are; None when it is gone. Costs some milliseconds."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        reading = None if _LINUX else _memory_elsewhere(pid)
        return Written(reading.resident, 0) if reading else None
    sizes = {key: int(rest.split()[0]) * 1024 for key, _, rest in (s.partition(":") for s in lines) if "kB" in rest}
    private = sizes["Private_Dirty"] + sizes.get("Private_Hugetlb", 0)
    return Written(private, sizes["Anonymous"] - sizes["Private_Dirty"])


def gpus() -> int:
    """How many NVIDIA GPUs this host shows, asked without loading CUDA."""
    listed = Path("/proc/driver/nvidia/gpus")
    if listed.is_dir():
        return len(list(listed.iterdir()))
    nodes = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]
    if nodes:
        return len(nodes)
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())


def pin(place: str | None) -> dict[str, str]:
    """Bind this process to ``place``: 'cuda:0', 'cpu', 'cpu:1', 'cpu:0,2'.

    What comes back are the environment variables to set before CUDA's first use. A core set takes hold at once, and
    a CPU device is shown no GPU. GPU numbers count what CUDA_VISIBLE_DEVICES lets through already. Raises LimitError
    when the core or GPU is not there, or the name is not a place.
    """
    if place is None:
        return {}
    kind, _, which = place.partition(":")
    if kind == "cpu":
        if which:
            set_affinity(_numbers(place, which))
        return {"CUDA_VISIBLE_DEVICES": ""}
    if kind != "cuda":
        raise LimitError(f"'{place}' is not a place to compute", hint="'cuda:0' or 'cpu:1'")
    index = _numbers(place, which or "0")
    if len(index) != 1:
        raise LimitError(f"'{place}' names more than one GPU", hint="one device, one GPU")
    visible = _visible_gpus()
    if index[0] >= len(visible):
        raise LimitError(f"'{place}' is not there: this host shows {len(visible)} GPU(s)", hint="'cpu' needs none")
    return {"CUDA_VISIBLE_DEVICES": visible[index[0]], "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _visible_gpus() -> list[str]:
    count = gpus()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(count)]
    granted = [name.strip() for name in named.split(",") if name.strip()]
    if count == 0:
        return []
    # CUDA itself stops at the first number that it doesn't know; identifiers like GPU-… are taken as they are
    kept: list[str] = []
    for name in granted:
        if name.lstrip("-").isdigit() and not 0 <= int(name) < count:
            break
        kept.append(name)
    return kept


def _numbers(place: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise LimitError(f"'{place}' is not a place to compute", hint="'cuda:0', 'cpu:1' or 'cpu:0,2'")
    return [int(part) for part in parts]
