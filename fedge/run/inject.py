"""A fault, really done to a device's process, or by it: signals, memory, the disk, the clock, its line's frames."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedge.errors import FedgeError
from fedge.run.faults import Fault
from fedge.wire.weather import Weather

#: Seconds of the wall clock for which a line is really cut, however long the partition is in the devices' time.
CUT = 0.5
#: Bytes by which a process tries to go beyond its wall before it is taken for no wall at all.
BEYOND = 64 << 20
_CHUNK = 1 << 20
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
#: What tells the time, and whether it may go backwards.
_CLOCKS = {"time": True, "time_ns": True, "monotonic": False, "monotonic_ns": False, "perf_counter": False}


class Struck(FedgeError):
    """A fault that was asked for has ended a device's work."""


class Injection:
    """What strikes one turn, from before the work to after the answer."""

    def __init__(
        self,
        told: Sequence[dict[str, Any]],
        weather: Weather,
        room: Callable[[], int] | None,
        place: Path,
        *,
        paced: bool = False,
    ):
        """room: bytes that the process may take before its wall, None without one. place: where it writes. paced:
        whether the emulation itself goes by the process's steady clock, which is left alone then."""
        self._faults = [Fault(**one) for one in told]
        self._weather = weather
        self._room = room
        self._place = place
        self._paced = paced

    def before(self) -> None:
        """What happens before the work: most of it. Signals are sent to this process, and some never come back."""
        for fault in self._faults:
            if fault.kind == "clock_jump":
                move_clocks(fault.amount, steady=self._paced)
            elif fault.kind == "partition":
                self._weather.cut(min(CUT, fault.amount))
            elif fault.kind == "corrupt":
                self._weather.spoil(str(fault.seed))
            elif fault.kind == "out_of_memory":
                if self._room is None:
                    raise Struck("there is no memory wall here")
                fill_memory(self._room())
            elif fault.kind == "hang":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif fault.kind == "crash" and not fault.seed & 1:
                os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def around(self, download: bytes | bytearray | memoryview) -> Iterator[None]:
        """The work. On a full disk the device can't keep what it was sent, nor its state; Struck says so."""
        if not any(fault.kind == "disk_full" for fault in self._faults):
            yield
            return
        with full_disk():
            keep(download, self._place)
            yield

    def after(self) -> None:
        """What happens when the answer is there and has not left."""
        if any(fault.kind == "crash" and fault.seed & 1 for fault in self._faults):
            os.kill(os.getpid(), signal.SIGKILL)


def fill_memory(room: int) -> None:
    """Take memory until something stops this process. FedgeError when nothing did, well beyond its ``room``."""
    held: list[bytearray] = []
    try:
        while len(held) * _CHUNK < max(0, room) + BEYOND:
            held.append(bytearray(b"\x01") * _CHUNK)  # written to, so that it is really there
    except MemoryError:
        held.clear()
        raise
    raise FedgeError(f"{len(held)} MiB were filled, well beyond the memory wall, and nothing stopped the device")


@contextmanager
def full_disk() -> Iterator[None]:
    """Have every write of this process to a file fail, as on a full disk; Struck when that ended the work."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    except (OSError, FedgeError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in _FULL:
            raise Struck(f"a write was refused: {cause.strerror}") from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def keep(download: bytes | bytearray | memoryview, place: Path) -> None:
    """Write a download to a file for a moment, as a device does that keeps it."""
    path = place / f".download.{os.getpid()}"
    try:
        path.write_bytes(download)
    finally:
        path.unlink(missing_ok=True)


def move_clocks(seconds: float, *, steady: bool = False) -> None:
    """Move what this process takes the time from: the wall clock either way, the others only forward, as a suspended
    device finds them, and with ``steady`` not at all. Names by which fedge's modules have imported them move too."""
    for name, back in _CLOCKS.items():
        if back or (seconds > 0 and not steady):
            source = getattr(time, name)
            by: float = round(seconds * 1e9) if name.endswith("_ns") else seconds
            moved = _moved(source, by)
            for module in [time, *(m for key, m in list(sys.modules.items()) if key.startswith("fedge."))]:
                if getattr(module, name, None) is source:
                    setattr(module, name, moved)


def _moved(source: Callable[[], float], by: float) -> Callable[[], float]:
    return lambda: source() + by
