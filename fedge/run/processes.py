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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

from fedge.emulation.wall import Group, Wall
from fedge.errors import FedgeError, LimitError
from fedge.meter.spans import PHASES
from fedge.plan.choose import Choice
from fedge.run.events import Answered, Died, Event, Hurry, Instruction, Lost, Paused, Picked, Resumed, Seek, Send
from fedge.run.faults import Fault
from fedge.run.nursery import Nursery
from fedge.run.orders import Order, Orders
from fedge.run.pacing import Pacing
from fedge.run.places import Place
from fedge.run.process import Host, ending
from fedge.run.worker import held
from fedge.wire.bus import Hub
from fedge.wire.exchange import Breach, Delivery, Gone
from fedge.wire.frames import Kind


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
        pacing: Pacing | None = None,
        beside: Sequence[Hub] = (),
        fds: Sequence[int] = (),
        orders: Orders | None = None,
    ):
        """pacing: what holds the devices to a real clock; None for the virtual one. beside, fds: other hubs and
        descriptors that end a wait; what they have is for others to read. orders: what is done by hand."""
        self._places = places
        self._wall = wall
        self.nursery = nursery
        self._hub = hub
        self._run = run
        self._limit = limit
        self._heartbeat = heartbeat
        self._revive = revive
        self._opened = opened
        self._pacing = pacing
        self._beside = beside
        self._fds = fds
        self._own = limit >= len(places)
        self._hosts: dict[str, Host] = {}
        self._at: dict[str, Host] = {}
        self._free: dict[str, Host] = {}
        self._waiting: deque[Seek | Send] = deque()
        self._incarnations = incarnations
        self._events: list[Event] = []
        self._groups: list[Group] = []
        self._listened = time.monotonic()
        self._closing = False
        self._orders = orders
        if orders is not None:
            orders.open()
            self._events += [Paused(device) for device in sorted(orders.paused)]

    # -- instructions ------------------------------------------------------------------------------------------------

    def do(self, instruction: Instruction) -> None:
        if isinstance(instruction, (Send, Seek)):
            if not self._place(instruction):
                self._waiting.append(instruction)
            return
        host = self._at.get(instruction.device)
        if host is not None and isinstance(instruction, Hurry):
            if self._pacing is not None:
                self._pacing.hurry(host.name)
                self._hub.post(host.name, Kind.EVENT, {"hurry": True})
        elif host is not None:
            self._hub.post(host.name, Kind.EVENT, {"end": True})
            host.talking = False
            self._release(host)

    def _place(self, work: Seek | Send) -> bool:
        """Give the work to a process; False while there is none for it."""
        host = self._at.get(work.device)
        if host is not None and host.work is not None:
            # It is being started and knows nothing yet, so it begins with the newer work. A device may be sent its
            # question before its death is told that came in the same moment, and then has to pick first.
            host.work = work
            return True
        if self._own:
            if host is not None and isinstance(work, Seek):  # what it built is what it picked before: it starts afresh
                host.leaving = host.leaving or not host.struck
                host.signal(signal.SIGKILL)
                return False
            if host is None:
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

    def _release(self, host: Host) -> None:
        """A process is not at work: another device may have it, unless its own is in the middle of a conversation."""
        if self._own or host.leaving or host.paused or host.struck:
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
        host = Host(name, incarnation, group, work.device, work, heard=time.monotonic())
        self._hosts[name] = self._at[work.device] = host
        self.nursery.command(
            "fork",
            host=name,
            incarnation=incarnation,
            address=self._hub.address,
            group=group.record(),
            walled=self._wall.name != "none",
            paced=self._pacing is not None,
            log=str(self._places[work.device].log),
        )

    def _give(self, host: Host, work: Seek | Send) -> None:
        """Put work before a process that is there and has nothing else to do."""
        self._free.pop(host.name, None)
        host.busy, host.heard, host.picks = True, time.monotonic(), isinstance(work, Seek)
        if not host.taken or host.device != work.device or isinstance(work, Seek):
            self._take_up(host, work)
        if isinstance(work, Send):
            about: dict[str, Any] = {"device": work.device, "round": work.round, "turn": work.turn}
            if not host.struck:
                host.faults = work.faults
            if work.faults:
                about["faults"] = [fault.to_json() for fault in work.faults]
            turn = None if self._pacing is None else self._pacing.begin(host.name, work)
            if turn is not None:
                about["pace"] = turn.to_json()
                host.pinned = work.pinned
            self._hub.post(host.name, Kind.ASK, about, work.blob)

    def _take_up(self, host: Host, work: Seek | Send) -> None:
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

    # -- by hand -----------------------------------------------------------------------------------------------------

    def _obey(self, order: Order, orders: Orders) -> None:
        """Do to a device's process what was ordered from outside, and say what came of it."""
        device, host = order.device, self._at.get(order.device)
        if device not in self._places:
            orders.answer(order, refused="no such device")
        elif host is not None and (host.pid is None or host.work is not None):
            return  # it is being started: the order waits
        elif order.word == "kill":
            self._kill_by_hand(order, host, orders)
        elif order.word == "pause":
            self._pause(order, host, orders)
        else:
            self._unpause(order, host, orders)

    def _kill_by_hand(self, order: Order, host: Host | None, orders: Orders) -> None:
        if host is None:
            self._waiting = deque(work for work in self._waiting if work.device != order.device)
            self._events.append(Lost(order.device, "fault", "kill", detail="kill: it had no process"))
            orders.answer(order, done="lost for this round; it had no process")
            return
        if host.paused:
            host.paused = False
            orders.paused.discard(host.device)
            self._events.append(Resumed(host.device))
        host.faults, host.stale = (Fault("kill"),), False
        self._free.pop(host.name, None)
        host.signal(signal.SIGKILL)
        orders.answer(order, done=f"killed, process {host.pid}")

    def _pause(self, order: Order, host: Host | None, orders: Orders) -> None:
        if order.device in orders.paused:
            orders.answer(order, refused="it is paused already")
            return
        if host is not None and host.busy and host.picks:
            return  # it has picked in a moment: the order waits
        orders.paused.add(order.device)
        self._events.append(Paused(order.device))
        if host is None:
            self._waiting = deque(w for w in self._waiting if w.device != order.device or isinstance(w, Seek))
            orders.answer(order, done="paused; it had no process")
            return
        host.paused, host.stale = True, host.busy or host.talking
        self._free.pop(host.name, None)
        host.signal(signal.SIGSTOP)
        orders.answer(order, done=f"paused, process {host.pid}" + (", in the middle of a round" if host.stale else ""))

    def _unpause(self, order: Order, host: Host | None, orders: Orders) -> None:
        if order.device not in orders.paused:
            orders.answer(order, refused="it is not paused")
            return
        orders.paused.discard(order.device)
        if host is None or not host.paused:
            self._events.append(Resumed(order.device))
            orders.answer(order, done="unpaused; it had no process")
        elif host.stale:  # the round went on without it: what it was at is of no use, and a new process knows nothing
            host.leaving = True
            host.signal(signal.SIGKILL)
            orders.answer(order, done="unpaused; it was at work, and begins anew")
        else:
            host.paused, host.heard = False, time.monotonic()
            host.signal(signal.SIGCONT)
            self._release(host)
            self._events.append(Resumed(order.device))
            orders.answer(order, done=f"unpaused, process {host.pid}")

    # -- events ------------------------------------------------------------------------------------------------------

    def wait(self) -> list[Event]:
        if self._pacing is not None:
            self._pacing.look()
        self._hub.wait(0.5 if not self._events else 0.0, [self.nursery.events, *self._fds], self._beside)
        for event in self._hub.receive(0):
            self._heard(event)
        for told in self.nursery.read():
            self._told(told)
        if not self.nursery.alive and not self._closing:
            self._orphaned()
        self._check_beats()
        if self._orders is not None and not self._closing:
            for order in self._orders.take():
                self._obey(order, self._orders)
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
            if any(fault.kind == "corrupt" for fault in host.faults):
                host.failed = {"kind": "fault", "message": event.error.message}
            else:
                self._events.append(Lost(host.device, "protocol", detail=str(event.error)))
                host.leaving = True
            host.signal(signal.SIGKILL)
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

    def _wall_up(self, event: Delivery, host: Host) -> None:
        """Put up the launcher's side of the wall before the device computes anything."""
        host.baseline, host.shared = int(event.header["baseline"]), int(event.header["shared"])
        try:
            if "launcher" in host.group.sides and self._wall.name != "none":
                host.group.apply(int(event.header["limit"]))
        except LimitError as error:
            if host.group.usage() <= int(event.header["limit"]):
                raise
            # what came with the first question is more than the device may hold
            host.failed = {"kind": "memory", "phase": "download", "peak": host.peak(), "message": error.message}
            host.signal(signal.SIGKILL)
            return
        self._hub.post(host.name, Kind.EVENT, {"walled": True})

    def _answered(self, event: Delivery, host: Host) -> None:
        header = event.header
        assert event.blob is not None
        host.busy, host.talking = False, not header["done"]
        if not host.struck:
            host.faults = ()
        paced = {}
        if self._pacing is not None and "paced" in header:
            paced = self._pacing.answered(host.name, host.device, host.pinned, header["paced"])
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
                paced,
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
            if self._pacing is not None:
                self._pacing.forked(host.name, host.incarnation, told["pid"])
        else:
            self._last_words(host, told["status"])
            self._ended(host, told["status"], PHASES[told["phase"]])

    def _last_words(self, host: Host, status: int) -> None:
        """Hear what a device said before it ended of itself: its end may be known before its words are here."""
        end = time.monotonic() + 2.0
        while host.failed is None and os.WIFEXITED(status) and os.WEXITSTATUS(status) and time.monotonic() < end:
            for event in self._hub.receive(0.05):
                self._heard(event)

    def _ended(self, host: Host, status: int, phase: str) -> None:
        self._forget(host)
        if self._pacing is not None:
            self._pacing.ended(host.name)
        wanted = self._own or host.busy or host.talking
        event = ending(host, status, phase, self._places[host.device], self._heartbeat, wanted=wanted)
        if event is not None:
            self._events.append(event)
        host.group.close()
        if not self._closing:
            self._go_on()

    def _forget(self, host: Host) -> None:
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
            if self._pacing is not None:
                self._pacing.ended(host.name)
            if host.struck:
                self._events.append(Lost(host.device, "fault", "kill", detail="kill: the zygote died too"))
            elif not host.leaving and (self._own or host.busy or host.talking):
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
            if host.pid is not None and not host.paused and host.heard < now - self._heartbeat:
                host.signal(signal.SIGKILL)
                host.heard = now

    def open(self, now: float) -> None:
        """Set the real clock, where there is one, by the second at which a round begins."""
        if self._pacing is not None:
            self._pacing.open(now)

    def reach(self, now: float) -> None:
        """Wait for the real clock, where there is one."""
        if self._pacing is not None:
            self._pacing.timeline.reach(now)

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

    def close(self) -> None:
        """Ask every device to leave, wait a little, and kill those that don't."""
        self._closing = True
        if self._orders is not None:
            self._orders.close()
        for host in self._hosts.values():
            host.leaving = True
            if host.paused:
                host.signal(signal.SIGKILL)
            self._hub.post(host.name, Kind.BYE)
        end = time.monotonic() + 3.0
        while self._hosts and self.nursery.alive and time.monotonic() < end:
            self.wait()
        for host in self._hosts.values():
            host.signal(signal.SIGKILL)
        end = time.monotonic() + 3.0
        while self._hosts and self.nursery.alive and time.monotonic() < end:
            self.wait()
        for group in self._groups:
            group.close()


def _choice(told: dict[str, Any]) -> Choice:
    refused = {int(index): str(why) for index, why in told["refused"].items()}
    return Choice(told["index"], told["reason"], told["runner_up"], refused, told["limit"])
