"""What this host can hold a device to, found out by trying: each mechanism is applied to a child, and measured."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fedge.emulation import cuda, process, quota, wall
from fedge.emulation.link import Link
from fedge.emulation.malloc import can_pin
from fedge.errors import FedgeError, LimitError
from fedge.run.paced import ends
from fedge.units import format_bitrate, format_bytes, format_seconds

#: The share of a core that is asked of each mechanism, and for how many seconds it is watched.
_SHARE, _SECONDS = 0.25, 1.0
#: The rate and the round trip that are asked of a paced line, and how many round trips are taken.
_RATE, _TRIP, _TRIPS = 8e6, 0.05, 9


@dataclass(frozen=True)
class Finding:
    """One mechanism: whether it works, what was asked of it and seen, and what to do for better.

    used: whether runs on this host would take it. error: seen over asked less one, None where nothing is measured.
    """

    limit: str
    mechanism: str
    works: bool
    used: bool
    asked: str | None = None
    seen: str | None = None
    error: float | None = None
    detail: str | None = None


def examine() -> list[dict[str, Any]]:
    """Try everything; takes some seconds. Flat rows, one a mechanism, in the order of preference within a limit."""
    return [asdict(finding) for finding in (*_memory(), *_processor(), *_network(), *_places())]


def _memory() -> Iterator[Finding]:
    chosen = False
    for name in wall.KINDS:
        try:
            found = wall.find(name)
            taken = wall.prove(found)
        except LimitError as error:
            yield Finding("memory", name, False, False, detail=str(error))
            continue
        limit = wall.PROOF_LIMIT
        late = (
            f"a burst may pass the limit by up to {format_bytes(found.burst)} for a moment; it is judged all the same"
        )
        detail = late if found.burst else None
        # some pages of the child's own are counted too
        shown = format_bytes(limit), format_bytes(taken), taken / limit - 1
        yield Finding("memory", name, True, not chosen, *shown, detail)
        chosen = True
    pinned = can_pin()
    advice = None if pinned else "no glibc: a device holds up to twice what is alive in it; leave room in its budget"
    yield Finding("memory", "pinned malloc", pinned, pinned, detail=advice)


def _processor() -> Iterator[Finding]:
    for name, open_throttle in quota.KINDS.items():
        try:
            seen = watched(open_throttle("doctor", f"{name}-{os.getpid()}"), _SHARE, _SECONDS)
        except LimitError as error:
            yield Finding("processor", name, False, False, detail=str(error))
            continue
        # the virtual clock needs none of them, so none is taken; the real one takes the first that works
        yield Finding("processor", name, True, False, f"{_SHARE:.0%}", f"{seen:.1%}", seen / _SHARE - 1)


def watched(throttle: quota.Throttle, share: float, seconds: float) -> float:
    """The share of a core that a child gets within so many seconds that would take all of one.

    Raises LimitError where the throttle, or telling a child's processor time, does not work here.
    """
    pid = os.fork()
    if pid == 0:
        process.die_with_parent()
        while True:
            sum(range(1000))
    try:
        throttle.join(pid)
        throttle.apply(share)
        time.sleep(2 * quota.PERIOD)  # in its first period it may use what a whole one grants at once
        begun, before = time.monotonic(), quota.processor_seconds(pid)
        time.sleep(seconds)
        after, ended = quota.processor_seconds(pid), time.monotonic()
        if before is None or after is None:
            raise LimitError("this system does not tell a child's processor time")
        return (after - before) / (ended - begun)
    finally:
        throttle.lift()
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        throttle.close()


def _network() -> Iterator[Finding]:
    """A message to a child and its answer, at the pace of a link."""
    size = round(_RATE / 8 * _SECONDS)
    try:
        with ends(Link(_RATE, _RATE)) as pair:
            seen = size * 8 / pair.exchange(size, 1)[0]
        with ends(Link(1e9, 1e9, latency=_TRIP)) as pair:
            trip = sorted(sum(pair.exchange(125, 125)) for _ in range(_TRIPS))[_TRIPS // 2]
    except FedgeError as error:
        yield Finding("network", "paced messages", False, False, detail=str(error))
        return
    asked = format_bitrate(_RATE)
    yield Finding("network", "paced messages", True, False, asked, format_bitrate(seen), seen / _RATE - 1)
    asked, told = format_seconds(_TRIP), format_seconds(trip)
    yield Finding("network", "paced round trip", True, False, asked, told, trip / _TRIP - 1)


def _bound(core: int) -> bool:
    """Whether a child that is bound to a core finds itself there and nowhere else."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            process.set_affinity({core})
            code = 0 if process.cores() == {core} else 2
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def _places() -> Iterator[Finding]:
    cores = sorted(process.cores())
    pins = hasattr(os, "sched_setaffinity")
    works = [core for core in cores if _bound(core)] if pins else []
    detail = f"cores {', '.join(map(str, works))}" if works else f"{sys.platform} can't bind a process to cores"
    asked, seen = (f"{len(cores)} cores", f"{len(works)} cores") if pins else (None, None)
    yield Finding("place", "pin: cpu:N", bool(works), bool(works), asked, seen, detail=detail)
    gpus = process.gpus()
    told = f"{gpus} NVIDIA GPU(s), which devices do not compute on yet" if gpus else "no NVIDIA GPU on this host"
    yield Finding("place", "pin: cuda:N", False, False, detail=told)
    for row in cuda.findings(gpus):
        yield Finding("place", row["mechanism"], row["works"], False, detail=row["detail"])
