"""Devices as processes of their own behind ZeroMQ: the engine that ``fedge up`` uses."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedge.core.cost import Budget
from fedge.emulation.wall import Group, Wall
from fedge.errors import FedgeError, LimitError, MethodError
from fedge.meter.spans import PHASES
from fedge.plan.choose import Choice
from fedge.run.brief import Brief
from fedge.run.events import Answered, Died, End, Event, Instruction, Lost, Picked, Seek, Send
from fedge.run.nursery import Nursery
from fedge.run.worker import held
from fedge.wire.bus import Hub
from fedge.wire.exchange import Breach, Delivery, Gone
from fedge.wire.frames import Kind


@dataclass(frozen=True)
class Place:
    """What a device's process is given besides the stage: its budget, its rows, where it computes and logs."""

    budget: Budget
    rows: list[int]
    pin: str | None
    log: Path


@dataclass
class _Child:
    """One incarnation of a device's process."""

    incarnation: int
    group: Group
    seek: Seek
    pid: int | None = None
    heard: float = 0.0
    baseline: int = 0
    shared: int = 0
    failed: dict[str, Any] | None = None
    leaving: bool = False


class Processes:
    """Fulfils ``run.engine.Engine``. ``revive`` starts a new zygote at this stage when the present one is gone.
    ``opened`` is told of every group before anything is in it.

    ``incarnations``: how often each device was started in this run, over all stages; an identity is never used twice.
    """

    def __init__(
        self,
        brief: Brief,
        places: Mapping[str, Place],
        wall: Wall,
        nursery: Nursery,
        hub: Hub,
        states: Path,
        *,
        run: str,
        heartbeat: float,
        incarnations: dict[str, int],
        revive: Callable[[], Nursery],
        opened: Callable[[], None],
    ):
        self._brief = brief
        self._places = places
        self._wall = wall
        self.nursery = nursery
        self._hub = hub
        self._states = states
        self._run = run
        self._heartbeat = heartbeat
        self._revive = revive
        self._opened = opened
        self._children: dict[str, _Child] = {}
        self._incarnations = incarnations
        self._events: list[Event] = []
        self._groups: list[Group] = []
        self._listened = time.monotonic()
        self._closing = False

    # -- instructions ------------------------------------------------------------------------------------------------

    def do(self, instruction: Instruction) -> None:
        if isinstance(instruction, Seek):
            self._start(instruction)
        elif isinstance(instruction, Send):
            child = self._children.get(instruction.device)
            if child is not None:
                child.heard = time.monotonic()
            about = {"round": instruction.round, "turn": instruction.turn}
            self._hub.post(instruction.device, Kind.ASK, about, instruction.blob)
        elif isinstance(instruction, End):
            self._hub.post(instruction.device, Kind.TELL, {"end": True})

    def _start(self, seek: Seek) -> None:
        device = seek.device
        incarnation = self._incarnations.get(device, 0) + 1
        self._incarnations[device] = incarnation
        group = self._wall.open(self._run, device, incarnation)
        self._groups.append(group)
        self._opened()
        self._children[device] = _Child(incarnation, group, seek, heard=time.monotonic())
        place = self._places[device]
        self.nursery.command(
            "fork",
            device=device,
            incarnation=incarnation,
            address=self._hub.address,
            group=group.record(),
            walled=self._wall.name != "none",
            budget=asdict(place.budget),
            rows=place.rows,
            pin=place.pin,
            core=None,
            log=str(place.log),
            states=str(self._states),
        )

    # -- events ------------------------------------------------------------------------------------------------------

    def wait(self) -> list[Event]:
        self._hub.wait(0.5 if not self._events else 0.0, fds=[self.nursery.events])
        for event in self._hub.receive(0):
            self._heard(event)
        for told in self.nursery.read():
            self._told(told)
        if not self.nursery.alive and not self._closing:
            self._orphaned()
        self._check_beats()
        events, self._events = self._events, []
        return events

    def _heard(self, event: Delivery | Breach | Gone) -> None:
        if isinstance(event, Gone) or event.device not in self._children:
            return
        child = self._children[event.device]
        if event.incarnation != child.incarnation:
            return
        child.heard = time.monotonic()
        if isinstance(event, Breach):
            self._events.append(Lost(event.device, "protocol", detail=str(event.error)))
            self._kill(child)
            child.leaving = True
        elif event.kind is Kind.HELLO:
            seek = child.seek
            about = {"banned": list(seek.banned), "pinned": seek.pinned, "stateful": seek.stateful}
            self._hub.post(event.device, Kind.PREPARE, about)
        elif event.kind is Kind.READY:
            self._events.append(Picked(event.device, _choice(event.header["choice"])))
        elif event.kind is Kind.EVENT:
            self._wall_up(event, child)
        elif event.kind is Kind.TELL:
            self._answered(event, child)
        elif event.kind is Kind.FAIL:
            child.failed = event.header

    def _wall_up(self, event: Delivery, child: _Child) -> None:
        """Put up the launcher's side of the wall before the device computes anything."""
        child.baseline, child.shared = int(event.header["baseline"]), int(event.header["shared"])
        try:
            if "launcher" in child.group.sides and self._wall.name != "none":
                child.group.apply(int(event.header["limit"]))
        except LimitError as error:
            if child.group.usage() <= int(event.header["limit"]):
                raise
            # what came with the first question is more than the device may hold
            peak = held(child.group.peak(), child.baseline, child.shared)
            child.failed = {"kind": "memory", "phase": "download", "peak": peak, "message": error.message}
            self._kill(child)
            return
        self._hub.post(event.device, Kind.EVENT, {"walled": True})

    def _answered(self, event: Delivery, child: _Child) -> None:
        header = event.header
        assert event.blob is not None
        self._events.append(
            Answered(
                event.device,
                int(header["round"]),
                int(header["turn"]),
                event.blob,
                bool(header["done"]),
                None if header["stateful"] is None else int(header["stateful"]),
                int(header["peak"]),
                dict(header["noted"]),
            )
        )

    def _told(self, told: dict[str, Any]) -> None:
        if told["is"] == "failed":
            raise FedgeError(f"the zygote failed: {told['message']}")
        if told["is"] not in ("forked", "ended"):
            return
        child = self._children.get(told["device"])
        if child is None or child.incarnation != told["incarnation"]:
            return
        if told["is"] == "forked":
            child.pid = told["pid"]
            child.group.adopt(told["pid"])
        else:
            self._last_words(child, told["status"])
            self._ended(told["device"], child, told["status"], PHASES[told["phase"]])

    def _last_words(self, child: _Child, status: int) -> None:
        """Hear what a device said before it ended of itself: its end may be known before its words are here."""
        end = time.monotonic() + 2.0
        while child.failed is None and os.WIFEXITED(status) and os.WEXITSTATUS(status) and time.monotonic() < end:
            for event in self._hub.receive(0.05):
                self._heard(event)

    def _ended(self, device: str, child: _Child, status: int, phase: str) -> None:
        del self._children[device]
        cap = self._places[device].budget.memory
        if child.leaving:
            pass
        elif child.group.killed_for_memory():
            peak = held(child.group.peak(), child.baseline, child.shared)
            self._events.append(Lost(device, "memory", phase, peak, cap, "killed at its memory wall"))
        elif child.failed is not None and child.failed["kind"] == "memory":
            failed = child.failed
            self._events.append(
                Lost(device, "memory", failed["phase"], int(failed["peak"]), cap, str(failed["message"]))
            )
        elif child.failed is not None and child.failed["kind"] == "error":
            kind = MethodError if child.failed["method"] else FedgeError
            raise kind(str(child.failed["message"]), hint=f"see {self._places[device].log}")
        else:
            said = f": {child.failed['message']}" if child.failed else ""
            self._events.append(Died(device, _ending(status) + said))
        self._hub.forget(device)
        child.group.close()

    def _orphaned(self) -> None:
        """The zygote is gone and with it every device: start another and have them all begin again."""
        lost, self._children = self._children, {}
        for device, child in lost.items():
            self._hub.forget(device)
            child.group.close()
            if not child.leaving:
                self._events.append(Died(device, "the zygote died"))
        self.nursery = self._revive()

    def _check_beats(self) -> None:
        """Kill devices that have been silent for too long. While nobody listened here, nobody was silent."""
        now = time.monotonic()
        away, self._listened = now - self._listened, now
        for child in self._children.values():
            if away > 1.0:
                child.heard = max(child.heard, now - self._heartbeat / 2)
            if child.pid is not None and child.heard < now - self._heartbeat:
                self._kill(child)
                child.heard = now

    def memory(self) -> dict[str, int]:
        """Bytes that each device's process holds now, counted as its budget is; from when its wall stands."""
        found = {}
        for device, child in self._children.items():
            if child.baseline:
                with suppress(LimitError, OSError):  # it may be gone already
                    found[device] = held(child.group.usage(), child.baseline, child.shared)
        return found

    def sending(self) -> set[str]:
        """The devices of whose answer a part is here."""
        return self._hub.sending

    def _kill(self, child: _Child) -> None:
        if child.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)

    def close(self) -> None:
        """Ask every device to leave, wait a little, and kill those that don't."""
        self._closing = True
        for device, child in self._children.items():
            child.leaving = True
            self._hub.post(device, Kind.BYE)
        end = time.monotonic() + 3.0
        while self._children and self.nursery.alive and time.monotonic() < end:
            self.wait()
        for child in self._children.values():
            self._kill(child)
        end = time.monotonic() + 3.0
        while self._children and self.nursery.alive and time.monotonic() < end:
            self.wait()
        for group in self._groups:
            group.close()


def _choice(told: dict[str, Any]) -> Choice:
    refused = {int(index): str(why) for index, why in told["refused"].items()}
    return Choice(told["index"], told["reason"], told["runner_up"], refused)


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return f"ended with code {os.WEXITSTATUS(status)}"
