"""A process for devices, from just after the fork: into its group, then, device by device, behind the wall and to work.

The order matters. The group is joined before any memory is touched; malloc is pinned before the first tensor; what
every process allocates once is allocated before the baseline is read; and the wall goes up before the device's own
work begins. The wall stands at ``baseline + budget − what is shared and never written``.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import torch

from fedge.emulation.malloc import pin_malloc, trim
from fedge.emulation.pace import Pacer, Turn, later
from fedge.emulation.process import cores, die_with_parent, pin, set_affinity, set_name
from fedge.emulation.wall import Group, is_allocation_failure, rejoin
from fedge.errors import FedgeError, MethodError
from fedge.meter.spans import PHASES, SpanMeter
from fedge.run.brief import Brief
from fedge.run.inject import Injection, Struck
from fedge.run.places import Place
from fedge.run.seat import Ground, Seat
from fedge.run.warmup import UNEXPLAINED, warm
from fedge.wire.blobs import Blob
from fedge.wire.exchange import Delivery
from fedge.wire.frames import Kind
from fedge.wire.line import Line

#: Seconds between two signs of life.
BEAT = 1.0


@dataclass(frozen=True)
class Stock:
    """What a process inherits from the zygote: the stage, the ground, all rows, and every device's own part.

    test: the rows of the test split on which devices without rows of their own for it test their own models.
    """

    brief: Brief
    ground: Ground
    rows: Any
    test: Any
    places: Mapping[str, Place]
    states: Path


def live(order: dict[str, Any], stock: Stock, slot: mmap, parent: int) -> int:
    """The whole life of a process for devices; returns its exit code."""
    group = rejoin(order["group"])
    group.join()
    if order["walled"]:
        pin_malloc(sum(parameter.nbytes for parameter in stock.ground.base.parameters()))
    die_with_parent(parent=parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _log_to(Path(order["log"]))
    torch.set_num_threads(1)
    pacer = Pacer() if order["paced"] else None
    line = Line(
        order["address"],
        order["host"],
        order["incarnation"],
        beat=BEAT,
        up=None if pacer is None else pacer.up,
        down=None if pacer is None else pacer.down,
        hurried=None if pacer is None else pacer.hurry,
    )
    line.start()
    try:
        return _Worker(stock, group, line, slot, bool(order["walled"]), pacer).serve()
    finally:
        line.close()


class _Dismissed(Exception):
    """The launcher has said goodbye."""


class _Worker:
    """Serves one device at a time; what an earlier one held is gone before the next is taken up."""

    def __init__(self, stock: Stock, group: Group, line: Line, slot: mmap, walled: bool, pacer: Pacer | None):
        self.stock = stock
        self.group = group
        self.line = line
        self.slot = slot
        self.walled = walled
        self.pacer = pacer
        self.seat: Seat | None = None
        self.warm = False
        self.baseline: int | None = None
        self.shared = 0
        self.limit = 0
        self.stateful: int | None = None
        self._cores = cores()
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
            self._take_up(header)
        elif delivery.kind is Kind.ASK:
            assert delivery.blob is not None
            self._answer(header, delivery.blob)
        elif delivery.kind is Kind.EVENT and header.get("end") and self.seat is not None:
            self.seat.end()

    def _take_up(self, header: dict[str, Any]) -> None:
        """Become the device that the header names, and have it pick."""
        device = str(header["device"])
        if self.seat is None or self.seat.name != device:
            self.seat = self._seat(device)
        choice = self.seat.pick(header["banned"], header["pinned"])
        self.stateful = header["stateful"]
        self.baseline = None
        if self.pacer is not None:
            # what a process does once is none of the device's time, so it is done before the clock of a round runs
            self._warm()
            self.pacer.link = self.stock.places[device].link
        self.shared = 0 if choice.index is None else self.stock.brief.menu[choice.index].cost.shared
        if header["picks"]:
            told = asdict(choice)
            told["refused"] = {str(index): why for index, why in choice.refused.items()}
            self.line.post(Kind.READY, {"choice": told})

    def _seat(self, device: str) -> Seat:
        place = self.stock.places[device]
        if self.seat is not None:
            self.seat = None
            gc.collect()
            trim()
            if self.walled and "device" in self.group.sides:
                self.group.lift()
            _log_to(place.log)
            set_affinity(self._cores)
        set_name(f"fedge:{device}"[:15])
        os.environ.update(pin(place.pin))
        stock = self.stock
        rows = stock.rows.take(torch.from_numpy(place.rows))
        tests = stock.test if place.tests is None else stock.rows.take(torch.from_numpy(place.tests))
        return Seat(
            stock.brief, stock.ground, device, place.budget, rows, stock.states, SpanMeter(self.slot), tests=tests
        )

    def _answer(self, header: dict[str, Any], blob: bytearray) -> None:
        assert self.seat is not None
        begun = time.process_time()
        if self.baseline is None:
            self._wall_up(len(blob))
            self.seat.restore(self.stateful)
        room = self._room if self.walled else None
        injected = Injection(
            header.get("faults", ()), self.line.weather, room, self.stock.states, paced=self.pacer is not None
        )
        injected.before()
        with injected.around(blob):
            answer = self.seat.answer(header["round"], header["turn"], blob)
        injected.after()
        self._judge()
        about = {
            "round": header["round"],
            "turn": header["turn"],
            "done": answer.done,
            "stateful": answer.stateful,
            # question and answer were both there: a bound for models so tiny that the count can't tell them from noise
            "peak": max(self._peak(), len(blob) + len(answer.data)),
            "noted": answer.noted,
        }
        if self.pacer is not None and "pace" in header:
            turn = Turn.from_json(header["pace"])
            cpu = time.process_time() - begun
            behind = self.pacer.hold(turn)
            about["paced"] = {"cpu_s": cpu, "behind_s": behind}
            about["pace"] = later(turn, behind).to_json()
        self.line.post(Kind.TELL, about, Blob(answer.data))
        if answer.done:
            gc.collect()  # what lies in cycles would fill a tight budget in some rounds
            trim()

    def _wall_up(self, held: int) -> None:
        """Allocate what every process allocates once, read the baseline (``held`` bytes of it are the message)."""
        assert self.seat is not None
        self._warm()
        self.baseline = max(0, self.group.usage() - held)
        self.group.reset_peak()
        self.limit = self.seat.budget.memory - self.shared + self.baseline + UNEXPLAINED
        self.line.post(Kind.EVENT, {"baseline": self.baseline, "limit": self.limit, "shared": self.shared})
        if self.walled and "device" in self.group.sides:
            self.group.apply(self.limit)
        for told in self._deliveries:  # nothing may be computed before the launcher's side of the wall stands
            if told.kind is Kind.EVENT and told.header.get("walled"):
                return
            if told.kind is Kind.BYE:
                raise _Dismissed

    def _warm(self) -> None:
        if not self.warm:
            warm(parent=False)
            self.warm = True

    def _peak(self) -> int:
        """The most that the device has held, the shared weights that it would hold included."""
        return held(self.group.peak(), self.baseline or 0, self.shared)

    def _room(self) -> int:
        """Bytes that this process may still take before it is at its wall."""
        return self.limit - self.group.usage()

    def _judge(self) -> None:
        """Raise MemoryError where the device went over its wall for a moment that no watch was in time for.

        Before it answers, so that whether it answers hangs on what it held alone. A cgroup is never late.
        """
        if self.walled and "device" in self.group.sides and self.group.peak() > self.limit:
            raise MemoryError(f"it held {self._peak()} bytes at its highest, more than it grants")

    def _fail(self, error: Exception) -> int:
        memory = is_allocation_failure(error)
        kind = "memory" if memory else "error" if isinstance(error, FedgeError) else "crash"
        if isinstance(error, Struck):
            kind = "fault"
        phase = PHASES[self.slot[0]]
        if kind not in ("memory", "fault"):
            traceback.print_exception(error)
        message = str(error) if isinstance(error, FedgeError) else f"{type(error).__name__}: {error}"
        told = {"kind": kind, "message": message[:4000], "phase": phase, "peak": self._peak()}
        self.line.post(Kind.FAIL, {**told, "method": isinstance(error, MethodError)})
        return 3 if kind in ("memory", "fault") else 1


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
