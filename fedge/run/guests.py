"""Devices on other machines, seen from the coordinator: who has joined, what each is at, and what it is to be given.

One ``Guests`` lives as long as the run; for each stage it is an engine (``run.engine.Engine``) for the devices that are
remote. What passes is the engine's own instructions and events, for at the other end ``run.join`` has an engine too:

    WELCOME               the run, once the device has said HELLO
    EVENT stage           a stage and what belongs to it, by digest; the device answers by what it still needs
    EVENT part            one of those things
    PREPARE, READY        Seek and Picked
    ASK, TELL             Send and Answered
    EVENT end             End
    FAIL                  from the device a loss; to it the reason why it is dropped

A device that loses its connection comes back as another incarnation and goes on where it was; one that was started
anew (another token) begins its conversation again from what it had been sent. Nothing that a device says is taken
before ``run.told`` has looked at it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import fedge
from fedge.run.events import Died, End, Event, Hurry, Instruction, Lost, Picked, Seek, Send
from fedge.run.told import Refused, answer_of, choice_of, count_of, loss_of, text_of
from fedge.wire.blobs import Blob
from fedge.wire.bus import Hub
from fedge.wire.exchange import Breach, Delivery, Gone
from fedge.wire.frames import Kind

Say = Callable[[str], None]
Note = Callable[[dict[str, Any]], None]

#: Seconds between two lines about who is waited for.
_SAID = 10.0
#: Seconds in which a device is to answer the goodbye.
_FAREWELL = 3.0


@dataclass(frozen=True)
class Entry:
    """What a device takes up a stage with. about: JSON; parts: larger things by name, each sent once."""

    about: dict[str, Any]
    parts: dict[str, Blob]


@dataclass
class _Guest:
    """One remote device. since: when it went away, or was first waited for. kept: see ``Guests._put``. out: lost to
    the stage; lied: why it is dropped for good."""

    device: str
    token: str = ""
    here: bool = False
    staged: bool = False
    heard: float = 0.0
    since: float | None = None
    out: bool = False
    lied: str = ""
    work: Seek | Send | None = None
    talking: bool = False
    asked: int = -1
    kept: int | None = None
    joined: int = 0
    number: int = 0


@dataclass
class Refusals:
    """What remote devices said that was not taken, by device and by kind."""

    by: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, device: str, kind: str) -> None:
        self.by.setdefault(device, Counter())[kind] += 1


class Guests:
    """See the module's text. wait: seconds until a device that isn't there counts as lost; heartbeat: until a silent
    one counts as gone. invite: the command by which a device joins."""

    def __init__(
        self,
        hub: Hub,
        devices: list[str],
        run: str,
        *,
        wait: float,
        heartbeat: float,
        invite: str,
        say: Say,
        note: Note,
    ):
        self.hub = hub
        self._guests = {device: _Guest(device) for device in devices}
        self._run = run
        self._wait = wait
        self._heartbeat = heartbeat
        self._invite = invite
        self._say = say
        self._note = note
        self._index = -1
        self._entries: Mapping[str, Entry] = {}
        self._offers = 0
        self._events: list[Event] = []
        self._listened = time.monotonic()
        self._said = 0.0
        self.refusals = Refusals()

    # -- a stage -----------------------------------------------------------------------------------------------------

    def enter(self, index: int, entries: Mapping[str, Entry], offers: int, limit: int) -> None:
        """Begin a stage. offers: how long its menu is; limit: bytes that an answer may have."""
        self._index, self._entries, self._offers = index, entries, offers
        self.hub.limit = limit
        self._events = []
        for guest in self._guests.values():
            guest.staged, guest.work, guest.talking, guest.out = False, None, False, bool(guest.lied)
            guest.asked, guest.kept, guest.since = -1, None, None
            if guest.here:
                self._offer(guest)

    def do(self, instruction: Instruction) -> None:
        """Carry out an instruction, or keep it until the device is there."""
        guest = self._guests[instruction.device]
        if isinstance(instruction, Hurry):
            return  # a device on another machine keeps its own time
        if isinstance(instruction, End):
            guest.talking = False
            if instruction.why:  # what its answer held, which is looked at where it is decoded
                self.refusals.add(guest.device, "answer")
                self._note({"event": "refused", "device": guest.device, "kind": "answer", "detail": instruction.why})
                self._drop(guest, instruction.why)
            elif guest.here and guest.staged:
                self.hub.post(guest.device, Kind.EVENT, {"end": True})
            return
        guest.work = instruction
        guest.number += 1  # by which the device tells what it is asked again from what is new
        if guest.here and guest.staged:
            self._put(guest)
        elif guest.since is None:
            guest.since = time.monotonic()

    def poll(self) -> list[Event]:
        """What has happened since; doesn't wait."""
        for event in self.hub.receive(0):
            self._heard(event)
        self._check()
        events, self._events = self._events, []
        return events

    def wait(self) -> list[Event]:
        """What happens within half a second."""
        self.hub.wait(0.5 if not self._events else 0.0)
        return self.poll()

    def memory(self) -> dict[str, int]:
        """Nothing: what a device on another machine holds is its own affair, until it says so with its answer."""
        return {}

    def sending(self) -> set[str]:
        return self.hub.sending & set(self._guests)

    def open(self, now: float) -> None:
        """Nothing: devices on other machines take part under the virtual clock only."""

    def reach(self, now: float) -> None:
        """Nothing, likewise."""

    def close(self) -> None:
        """The stage is over; the devices stay."""
        for guest in self._guests.values():
            guest.work, guest.talking = None, False

    def leave(self, status: str, message: str = "") -> None:
        """Say goodbye to everyone: the run is done, failed, or interrupted and may go on.

        Waits a little for each to say it too: one whose connection broke just now is told when it is back.
        """
        for event in self.hub.receive(0):
            self._heard(event)
        words = {"status": status, "message": message[:2000]}
        told = {guest.device for guest in self._guests.values() if guest.here}
        for device in told:
            self.hub.post(device, Kind.BYE, words)
        end = time.monotonic() + _FAREWELL
        while told and time.monotonic() < end:
            self.hub.wait(0.1)
            for event in self.hub.receive(0):
                if isinstance(event, Delivery) and event.kind is Kind.HELLO and event.device in told:
                    self.hub.post(event.device, Kind.BYE, words)
                elif isinstance(event, Delivery) and event.kind is Kind.BYE:
                    told.discard(event.device)

    def record(self) -> dict[str, Any]:
        """For the summary: where they joined, who was turned away at the gate, and what each sent that was refused."""
        devices = {}
        for name, guest in self._guests.items():
            counts = self.hub.counts(name)
            refused = dict(sorted(self.refusals.by.get(name, Counter()).items()))
            passed = {"received": counts.body_in + counts.header_in, "sent": counts.body_out + counts.header_out}
            devices[name] = {"joined": guest.joined, **passed, "refused": refused, "ignored": counts.ignored}
        return {"address": self.hub.address, "turned_away": self.hub.refused(), "devices": devices}

    # -- what arrives ------------------------------------------------------------------------------------------------

    def _heard(self, event: Delivery | Breach | Gone) -> None:
        if isinstance(event, Gone):
            return
        guest = self._guests.get(event.device)
        if isinstance(event, Breach):
            kind = "identity" if event.incarnation is None and guest is not None else "protocol"
            self.refusals.add(event.device or "unknown", kind)
            self._note({"event": "refused", "device": event.device, "kind": kind, "detail": str(event.error)})
            if guest is not None:
                self._drop(guest, event.error.message, told=event.incarnation is not None)
            return
        if guest is None:  # a key that is listed, for a device that this federation doesn't have
            self.refusals.add(event.device, "stranger")
            self.hub.dismiss(event.device, f"'{event.device}' is no remote device of this federation")
            return
        guest.heard = time.monotonic()
        try:
            self._take(guest, event)
        except Refused as error:
            self.refusals.add(guest.device, error.kind)
            self._note({"event": "refused", "device": guest.device, "kind": error.kind, "detail": error.message})
            self._drop(guest, error.message)

    def _take(self, guest: _Guest, event: Delivery) -> None:
        header = event.header
        if event.kind is Kind.HELLO:
            self._welcome(guest, header)
        elif event.kind is Kind.BYE:
            self.hub.post(guest.device, Kind.BYE, {"status": "left"})  # until then it does not close its connection
            if not guest.out:
                self._lose(guest, "left")
        elif guest.out or event.kind is Kind.BEAT:
            pass
        elif event.kind is Kind.EVENT:
            self._stage_word(guest, header)
        elif event.kind is Kind.READY:
            work = guest.work
            if not isinstance(work, Seek):
                raise Refused("it picked, and was not asked to", "replay")
            choice = choice_of(header.get("choice"), self._offers, work.banned, work.pinned)
            guest.work = None
            self._events.append(Picked(guest.device, choice))
        elif event.kind is Kind.TELL:
            self._answered(guest, event)
        elif event.kind is Kind.FAIL:
            self._failed(guest, header)

    def _welcome(self, guest: _Guest, header: dict[str, Any]) -> None:
        version, token = text_of(header, "fedge"), text_of(header, "token")
        if version != fedge.__version__:
            why = f"it is fedge {version}, and the coordinator {fedge.__version__}"
            self.hub.dismiss(guest.device, why)
            self._say(f"{guest.device} can't join: {why}")
            return
        if guest.lied:
            self.hub.dismiss(guest.device, guest.lied)
            return
        anew = token != guest.token
        again = ", again" if guest.joined else ""
        self._say(f"{guest.device} joined{again}")
        self._note({"event": "joined", "device": guest.device, "anew": anew})
        guest.here, guest.since, guest.joined = True, None, guest.joined + 1
        self.hub.post(guest.device, Kind.WELCOME, {"run": self._run})
        if guest.out:  # lost to this stage: it waits for the next
            guest.token = token
            return
        if anew:
            guest.token, guest.staged = token, False
            if guest.talking or isinstance(guest.work, Send):
                guest.work, guest.talking = None, False
                self._events.append(Died(guest.device, "it was started anew on its machine"))
        if guest.staged and count_of(header, "stage", least=-1) == self._index:
            self._put(guest)
        else:
            self._offer(guest)

    def _offer(self, guest: _Guest) -> None:
        entry = self._entries.get(guest.device)
        if entry is None:
            return
        guest.staged = False
        parts = {name: [blob.sha256, blob.length] for name, blob in entry.parts.items()}
        self.hub.post(guest.device, Kind.EVENT, {"stage": self._index, **entry.about, "parts": parts})

    def _stage_word(self, guest: _Guest, header: dict[str, Any]) -> None:
        if header.get("staged") == self._index:
            guest.staged = True
            self._put(guest)
        elif header.get("stage") == self._index:
            entry, needed = self._entries[guest.device], header.get("need")
            if not isinstance(needed, list) or not all(
                isinstance(name, str) and name in entry.parts for name in needed
            ):
                raise Refused("it needs what its stage does not have")
            for name in dict.fromkeys(needed):
                self.hub.post(guest.device, Kind.EVENT, {"part": name}, entry.parts[name])

    def _put(self, guest: _Guest) -> None:
        """Send what a device that is here and has taken up the stage is to do.

        kept: the number of the device's saved state at the last checkpoint, from which a resume may have to begin.
        """
        work = guest.work
        if isinstance(work, Seek):
            about = {"banned": list(work.banned), "pinned": work.pinned, "stateful": work.stateful, "n": guest.number}
            self.hub.post(guest.device, Kind.PREPARE, about)
        elif isinstance(work, Send):
            if work.round != guest.asked:
                guest.asked, guest.kept = work.round, work.stateful
            about = {"round": work.round, "turn": work.turn, "pinned": work.pinned, "stateful": work.stateful}
            faults = [fault.to_json() for fault in work.faults]
            told = {**about, "kept": guest.kept, "n": guest.number, "faults": faults}
            self.hub.post(guest.device, Kind.ASK, told, work.blob)

    def _answered(self, guest: _Guest, event: Delivery) -> None:
        work = guest.work
        if not isinstance(work, Send):
            raise Refused("it answered what it was not asked", "replay")
        answered = answer_of(guest.device, event.header, event.blob)
        if (answered.round, answered.turn) != (work.round, work.turn):
            told = f"round {answered.round}, turn {answered.turn}, and was asked {work.round}, {work.turn}"
            raise Refused(f"it answered {told}", "round")
        guest.work, guest.talking = None, not answered.done
        self._events.append(answered)

    def _failed(self, guest: _Guest, header: dict[str, Any]) -> None:
        struck = {fault.kind for fault in guest.work.faults} if isinstance(guest.work, Send) else set()
        lost = loss_of(guest.device, header, struck)
        guest.work, guest.talking = None, False
        if lost.cause == "died":
            self._events.append(Died(guest.device, lost.detail))
            return
        self._events.append(lost)
        if lost.cause == "host":
            self._say(f"{guest.device} is lost: {lost.detail}")
            guest.out = True

    # -- who is not there --------------------------------------------------------------------------------------------

    def _check(self) -> None:
        now = time.monotonic()
        away, self._listened = now - self._listened, now
        missing = []
        for guest in self._guests.values():
            if away > 1.0:  # while nobody listened here, nobody was silent
                guest.heard = max(guest.heard, now - self._heartbeat / 2)
                guest.since = None if guest.since is None else guest.since + away
            if guest.here and guest.heard < now - self._heartbeat:
                guest.here, guest.since = False, now
                self._say(f"{guest.device} is silent; waiting for it to come back")
                self._note({"event": "away", "device": guest.device})
            if guest.out or guest.work is None or guest.here or guest.since is None:
                continue
            if now - guest.since > self._wait:
                what = "come back" if guest.joined else "join"
                self._lose(guest, f"it did not {what} within {self._wait:.0f} s")
            else:
                missing.append((guest.since + self._wait - now, guest.device))
        if missing and now - self._said > _SAID:
            self._said = now
            names = ", ".join(device for _, device in missing)
            self._say(f"waiting for {names} ({min(missing)[0]:.0f} s left): {self._invite}")

    def _lose(self, guest: _Guest, why: str) -> None:
        guest.here, guest.work, guest.talking, guest.out = False, None, False, True
        self._say(f"{guest.device} is lost: {why}")
        self._events.append(Lost(guest.device, "host", detail=why))

    def _drop(self, guest: _Guest, why: str, *, told: bool = False) -> None:
        """A device that breaks the rules takes no further part in the stage, and hears why."""
        if not told:
            self.hub.dismiss(guest.device, why)
        guest.here, guest.work, guest.talking, guest.lied = False, None, False, why
        self._say(f"{guest.device} is dropped: {why}")
        if not guest.out:
            guest.out = True
            self._events.append(Lost(guest.device, "protocol", detail=why))
