"""A device's process, from just after the fork: into its group, behind its wall, and then the conversation.

The order matters. The group is joined before any memory is touched; malloc is pinned before the first tensor; what
every process allocates once is allocated before the baseline is read; and the wall goes up before the device's own
work begins. The wall stands at ``baseline + budget − what is shared and never written``.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from mmap import mmap
from pathlib import Path
from typing import Any

import torch

from fedge.core.cost import Budget
from fedge.emulation.malloc import pin_malloc, trim
from fedge.emulation.process import die_with_parent, pin, set_affinity, set_name
from fedge.emulation.wall import Group, is_allocation_failure, rejoin
from fedge.errors import FedgeError, MethodError
from fedge.meter.spans import PHASES, SpanMeter
from fedge.run.brief import Brief
from fedge.run.seat import Ground, Seat
from fedge.run.warmup import UNEXPLAINED, warm
from fedge.wire.blobs import Blob
from fedge.wire.bus import Line
from fedge.wire.exchange import Delivery
from fedge.wire.frames import Kind

#: Seconds between two signs of life.
BEAT = 1.0


def live(order: dict[str, Any], brief: Brief, ground: Ground, rows: Any, slot: mmap, parent: int) -> int:
    """The whole life of a device's process; returns its exit code."""
    group = rejoin(order["group"])
    group.join()
    if order["walled"]:
        pin_malloc()
    die_with_parent(parent=parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_name(f"fedge:{order['device']}"[:15])
    _log_to(Path(order["log"]))
    os.environ.update(pin(order["pin"]))
    if order["core"] is not None and order["pin"] is None:
        set_affinity([order["core"]])
    torch.set_num_threads(1)
    seat = Seat(
        brief,
        ground,
        order["device"],
        Budget(**order["budget"]),
        rows.take(order["rows"]),
        Path(order["states"]),
        SpanMeter(slot),
    )
    line = Line(order["address"], order["device"], order["incarnation"], beat=BEAT)
    line.start()
    try:
        return _Worker(seat, group, line, order).serve()
    finally:
        line.close()


class _Dismissed(Exception):
    """The launcher has said goodbye."""


class _Worker:
    def __init__(self, seat: Seat, group: Group, line: Line, order: dict[str, Any]):
        self.seat = seat
        self.group = group
        self.line = line
        self.walled = bool(order["walled"])
        self.baseline: int | None = None
        self.shared = 0
        self.stateful: int | None = None
        self._deliveries = self._receive()

    def serve(self) -> int:
        self.line.post(Kind.HELLO, {"pid": os.getpid()})
        try:
            for delivery in self._deliveries:
                self._take(delivery)
        except _Dismissed:
            self.line.post(Kind.BYE)
        except Exception as error:
            return self._fail(error)
        return 0

    def _receive(self) -> Iterator[Delivery]:
        while True:
            yield from self.line.receive()

    def _take(self, delivery: Delivery) -> None:
        header = delivery.header
        if delivery.kind is Kind.BYE:
            raise _Dismissed
        if delivery.kind is Kind.PREPARE:
            self.stateful = header["stateful"]
            choice = self.seat.pick(header["banned"], header["pinned"])
            if choice.index is not None:
                self.shared = self.seat.brief.menu[choice.index].cost.shared
            told = asdict(choice)
            told["refused"] = {str(index): why for index, why in choice.refused.items()}
            self.line.post(Kind.READY, {"choice": told})
        elif delivery.kind is Kind.ASK:
            assert delivery.blob is not None
            if self.baseline is None:
                self._wall_up(len(delivery.blob))
                self.seat.restore(self.stateful)
            answer = self.seat.answer(header["round"], header["turn"], delivery.blob)
            about = {
                "round": header["round"],
                "turn": header["turn"],
                "done": answer.done,
                "stateful": answer.stateful,
                "peak": self._peak(),
                "noted": answer.noted,
            }
            self.line.post(Kind.TELL, about, Blob(answer.data))
            if answer.done:
                gc.collect()  # what lies in cycles would fill a tight budget in some rounds
                trim()
        elif delivery.kind is Kind.TELL:
            self.seat.end()

    def _wall_up(self, held: int) -> None:
        """Allocate what every process allocates once, read the baseline (``held`` bytes of it are the message)."""
        warm(parent=False)
        self.baseline = max(0, self.group.usage() - held)
        self.group.reset_peak()
        limit = self.seat.budget.memory - self.shared + self.baseline + UNEXPLAINED
        self.line.post(Kind.EVENT, {"baseline": self.baseline, "limit": limit, "shared": self.shared})
        if self.walled and "device" in self.group.sides:
            self.group.apply(limit)
        for told in self._deliveries:  # nothing may be computed before the launcher's side of the wall stands
            if told.kind is Kind.EVENT:
                return
            if told.kind is Kind.BYE:
                raise _Dismissed

    def _peak(self) -> int:
        """The most that the device has held, the shared weights that it would hold included."""
        return held(self.group.peak(), self.baseline or 0, self.shared)

    def _fail(self, error: Exception) -> int:
        memory = is_allocation_failure(error)
        kind = "memory" if memory else "error" if isinstance(error, FedgeError) else "crash"
        phase = PHASES[self.seat.meter.slot[0]]
        if kind != "memory":
            traceback.print_exception(error)
        message = str(error) if isinstance(error, FedgeError) else f"{type(error).__name__}: {error}"
        told = {"kind": kind, "message": message[:4000], "phase": phase, "peak": self._peak()}
        self.line.post(Kind.FAIL, {**told, "method": isinstance(error, MethodError)})
        return 3 if memory else 1


def held(peak: int, baseline: int, shared: int) -> int:
    """Bytes of the budget that a group's ``peak`` stands for; the wall's own sum the other way round."""
    return max(0, peak - baseline - UNEXPLAINED) + shared


def _log_to(path: Path) -> None:
    """Send everything that this process prints to its own log."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
