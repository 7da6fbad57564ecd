"""Devices as processes of their own behind ZeroMQ: the engine that ``fedge up`` uses.

Where there are as many processes as devices, each device has its own for the whole stage. Where there are fewer, they
take devices in turn: a device that isn't in the middle of a conversation is parked, its state in a file, and the
process that takes up the next one lets go of all that it held, has its wall lifted, counts a baseline anew, and gets
the next device's wall before that device computes anything. A conversation keeps its process to the end; should all
of them be kept so, more are started.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from fedge.emulation.wall import Group, Wall
from fedge.errors import FedgeError, LimitError, MethodError
from fedge.meter.spans import PHASES
from fedge.plan.choose import Choice
from fedge.run.events import Answered, Died, End, Event, Instruction, Lost, Picked, Seek, Send
from fedge.run.nursery import Nursery
from fedge.run.places import Place
from fedge.run.worker import held
from fedge.wire.bus import Hub
from fedge.wire.exchange import Breach, Delivery, Gone
from fedge.wire.frames import Kind


@dataclass
class _Host:
    """One process: whom it has taken up, and what it is doing. ``work`` waits for its first word."""

    name: str
    incarnation: int
    group: Group
    device: str
    work: Seek | Send | None
    pid: int | None = None
    heard: float = 0.0
    taken: bool = False
    busy: bool = True
    talking: bool = False
    baseline: int = 0
    shared: int = 0
    failed: dict[str, Any] | None = None
    leaving: bool = False


class Processes:
    """Fulfils ``run.engine.Engine``. ``revive`` starts a new zygote at this stage when the present one is gone.
    ``opened`` is told of every group before anything is in it.

    limit: how many processes there may be. incarnations: how often each was started in this run, over all stages; an
    identity is never used twice.
    """

    def __init__(
        self,
        places: Mapping[str, Place],
        wall: Wall,
        nursery: Nursery,
        hub: Hub,
        *,
        run: str,
        limit: int,
        heartbeat: float,
        incarnations: dict[str, int],
        revive: Callable[[], Nursery],
        opened: Callable[[], None],
    ):
        self._places = places
        self._wall = wall
        self.nursery = nursery
        self._hub = hub
        self._run = run
        self._limit = limit
        self._heartbeat = heartbeat
        self._revive = revive
        self._opened = opened
        self._own = limit >= len(places)
        self._hosts: dict[str, _Host] = {}
        self._at: dict[str, _Host] = {}
        self._free: dict[str, _Host] = {}
        self._waiting: deque[Seek | Send] = deque()
        self._incarnations = incarnations
        self._events: list[Event] = []
        self._groups: list[Group] = []
        self._listened = time.monotonic()
        self._closing = False

    # -- instructions ------------------------------------------------------------------------------------------------

    def do(self, instruction: Instruction) -> None:
        if not isinstance(instruction, End):
            if not self._place(instruction):
                self._waiting.append(instruction)
            return
        host = self._at.get(instruction.device)
        if host is not None:
            self._hub.post(host.name, Kind.TELL, {"end": True})
            host.talking = False
            self._release(host)

    def _place(self, work: Seek | Send) -> bool:
        """Give the work to a process; False while there is none for it."""
        host = self._at.get(work.device)
        if self._own:
            if host is None or isinstance(work, Seek):
                self._start(work.device, work)
            else:
                self._give(host, work)
            return True
        if host is None and self._free:
            host = next(iter(self._free.values()))
        if host is not None:
            self._give(host, work)
        elif len(self._hosts) < self._limit or all(other.talking and not other.busy for other in self._hosts.values()):
            name = next(name for name in map("process-{:02d}".format, count()) if name not in self._hosts)
            self._start(name, work)
        else:
            return False
        return True

    def _release(self, host: _Host) -> None:
        """A process is not at work: another device may have it, unless its own is in the middle of a conversation."""
        if self._own or host.leaving:
            return
        if not host.busy and not host.talking:
            self._free[host.name] = host
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._place(self._waiting[0]):
            self._waiting.popleft()

    def _start(self, name: str, work: Seek | Send) -> None:
        incarnation = self._incarnations.get(name, 0) + 1
        self._incarnations[name] = incarnation
        group = self._wall.open(self._run, name, incarnation)
        self._groups.append(group)
        self._opened()
        host = _Host(name, incarnation, group, work.device, work, heard=time.monotonic())
        self._hosts[name] = self._at[work.device] = host
        self.nursery.command(
            "fork",
            host=name,
            incarnation=incarnation,
            address=self._hub.address,
            group=group.record(),
            walled=self._wall.name != "none",
            log=str(self._places[work.device].log),
        )

    def _give(self, host: _Host, work: Seek | Send) -> None:
        """Put work before a process that is there and has nothing else to do."""
        self._free.pop(host.name, None)
        host.busy, host.heard = True, time.monotonic()
        if not host.taken or host.device != work.device or isinstance(work, Seek):
            self._take_up(host, work)
        if isinstance(work, Send):
            about = {"device": work.device, "round": work.round, "turn": work.turn}
            self._hub.post(host.name, Kind.ASK, about, work.blob)

    def _take_up(self, host: _Host, work: Seek | Send) -> None:
        if host.taken and "launcher" in host.group.sides and self._wall.name != "none":
            host.group.lift()
        if self._at.get(host.device) is host:
            del self._at[host.device]
        host.device, host.taken, host.baseline, host.shared = work.device, True, 0, 0
        self._at[work.device] = host
        about = {
            "device": work.device,
            "picks": isinstance(work, Seek),
            "pinned": work.pinned,
            "stateful": work.stateful,
        }
        self._hub.post(
            host.name, Kind.PREPARE, {**about, "banned": list(work.banned) if isinstance(work, Seek) else []}
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
        if isinstance(event, Gone) or event.device not in self._hosts:
            return
        host = self._hosts[event.device]
        if event.incarnation != host.incarnation:
            return
        host.heard = time.monotonic()
        if isinstance(event, Breach):
            self._events.append(Lost(host.device, "protocol", detail=str(event.error)))
            self._kill(host)
            host.leaving = True
        elif event.kind is Kind.HELLO:
            work, host.work = host.work, None
            assert work is not None
            self._give(host, work)
        elif event.kind is Kind.READY:
            self._events.append(Picked(host.device, _choice(event.header["choice"])))
            host.busy = False
            self._release(host)
        elif event.kind is Kind.EVENT:
            self._wall_up(event, host)
        elif event.kind is Kind.TELL:
            self._answered(event, host)
        elif event.kind is Kind.FAIL:
            host.failed = event.header

    def _wall_up(self, event: Delivery, host: _Host) -> None:
        """Put up the launcher's side of the wall before the device computes anything."""
        host.baseline, host.shared = int(event.header["baseline"]), int(event.header["shared"])
        try:
            if "launcher" in host.group.sides and self._wall.name != "none":
                host.group.apply(int(event.header["limit"]))
        except LimitError as error:
            if host.group.usage() <= int(event.header["limit"]):
                raise
            # what came with the first question is more than the device may hold
            peak = held(host.group.peak(), host.baseline, host.shared)
            host.failed = {"kind": "memory", "phase": "download", "peak": peak, "message": error.message}
            self._kill(host)
            return
        self._hub.post(host.name, Kind.EVENT, {"walled": True})

    def _answered(self, event: Delivery, host: _Host) -> None:
        header = event.header
        assert event.blob is not None
        host.busy, host.talking = False, not header["done"]
        self._events.append(
            Answered(
                host.device,
                int(header["round"]),
                int(header["turn"]),
                event.blob,
                bool(header["done"]),
                None if header["stateful"] is None else int(header["stateful"]),
                int(header["peak"]),
                dict(header["noted"]),
            )
        )
        self._release(host)

    def _told(self, told: dict[str, Any]) -> None:
        if told["is"] == "failed":
            raise FedgeError(f"the zygote failed: {told['message']}")
        if told["is"] not in ("forked", "ended"):
            return
        host = self._hosts.get(told["host"])
        if host is None or host.incarnation != told["incarnation"]:
            return
        if told["is"] == "forked":
            host.pid = told["pid"]
            host.group.adopt(told["pid"])
        else:
            self._last_words(host, told["status"])
            self._ended(host, told["status"], PHASES[told["phase"]])

    def _last_words(self, host: _Host, status: int) -> None:
        """Hear what a device said before it ended of itself: its end may be known before its words are here."""
        end = time.monotonic() + 2.0
        while host.failed is None and os.WIFEXITED(status) and os.WEXITSTATUS(status) and time.monotonic() < end:
            for event in self._hub.receive(0.05):
                self._heard(event)

    def _ended(self, host: _Host, status: int, phase: str) -> None:
        self._forget(host)
        device, failed = host.device, host.failed
        cap = self._places[device].budget.memory
        if host.leaving:
            pass
        elif host.group.killed_for_memory():
            peak = held(host.group.peak(), host.baseline, host.shared)
            self._events.append(Lost(device, "memory", phase, peak, cap, "killed at its memory wall"))
        elif failed is not None and failed["kind"] == "memory":
            lost = Lost(device, "memory", failed["phase"], int(failed["peak"]), cap, str(failed["message"]))
            self._events.append(lost)
        elif failed is not None and failed["kind"] == "error":
            kind = MethodError if failed["method"] else FedgeError
            raise kind(str(failed["message"]), hint=f"see {self._places[device].log}")
        elif self._own or host.busy or host.talking:  # else it was nobody's at that moment
            said = f": {failed['message']}" if failed else ""
            self._events.append(Died(device, _ending(status) + said))
        host.group.close()
        if not self._closing:
            self._go_on()

    def _forget(self, host: _Host) -> None:
        del self._hosts[host.name]
        self._free.pop(host.name, None)
        if self._at.get(host.device) is host:
            del self._at[host.device]
        self._hub.forget(host.name)

    def _orphaned(self) -> None:
        """The zygote is gone and with it every process: start another and have those at work begin again."""
        for host in list(self._hosts.values()):
            self._forget(host)
            host.group.close()
            if not host.leaving and (self._own or host.busy or host.talking):
                self._events.append(Died(host.device, "the zygote died"))
        self.nursery = self._revive()
        self._go_on()

    def _check_beats(self) -> None:
        """Kill devices that have been silent for too long. While nobody listened here, nobody was silent."""
        now = time.monotonic()
        away, self._listened = now - self._listened, now
        for host in self._hosts.values():
            if away > 1.0:
                host.heard = max(host.heard, now - self._heartbeat / 2)
            if host.pid is not None and host.heard < now - self._heartbeat:
                self._kill(host)
                host.heard = now

    def memory(self) -> dict[str, int]:
        """Bytes that each device's process holds now, counted as its budget is; from when its wall stands."""
        found = {}
        for host in self._hosts.values():
            if host.baseline:
                with suppress(LimitError, OSError):  # it may be gone already
                    found[host.device] = held(host.group.usage(), host.baseline, host.shared)
        return found

    def sending(self) -> set[str]:
        """The devices of whose answer a part is here."""
        return {self._hosts[name].device for name in self._hub.sending if name in self._hosts}

    def _kill(self, host: _Host) -> None:
        if host.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(host.pid, signal.SIGKILL)

    def close(self) -> None:
        """Ask every device to leave, wait a little, and kill those that don't."""
        self._closing = True
        for host in self._hosts.values():
            host.leaving = True
            self._hub.post(host.name, Kind.BYE)
        end = time.monotonic() + 3.0
        while self._hosts and self.nursery.alive and time.monotonic() < end:
            self.wait()
        for host in self._hosts.values():
            self._kill(host)
        end = time.monotonic() + 3.0
        while self._hosts and self.nursery.alive and time.monotonic() < end:
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
