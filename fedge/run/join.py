"""``fedge join``: this machine is one device of a federation whose coordinator runs elsewhere.

It has what a launcher has, for one device: a zygote with the model, a process behind a memory wall, an engine that
carries out instructions. They come over tcp (``run.guests`` is the other end), and what comes of them goes back. Where
the connection breaks, the work goes on; the device comes back, and says again what may have been lost on the way.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import fedge
from fedge.core.cost import Budget
from fedge.emulation import wall as walls
from fedge.errors import FedgeError, Interrupted, LimitError, ProtocolError
from fedge.run.events import Answered, Died, End, Lost, Picked, Seek, Send
from fedge.run.faults import Fault
from fedge.run.folder import RunFolder, slug
from fedge.run.foreign import refuse_code
from fedge.run.limits import Footprint, clear, footprint
from fedge.run.nursery import Nursery
from fedge.run.pack import unpack
from fedge.run.parts import Parts
from fedge.run.places import Place, save_places
from fedge.run.processes import Processes
from fedge.run.signals import heeded
from fedge.run.states import forget_states
from fedge.wire.blobs import Blob
from fedge.wire.bus import Hub
from fedge.wire.exchange import Delivery
from fedge.wire.frames import Kind
from fedge.wire.keys import DeviceKey
from fedge.wire.line import Line, Severed

Say = Callable[[str], None]

#: Seconds between two signs of life, and between two tries to connect.
_BEAT, _AGAIN = 2.0, 1.0
#: How long a device that leaves waits for the coordinator to have heard it.
_FAREWELL = 5.0


@dataclass(frozen=True)
class Options:
    """How ``join`` is to go. folder: where the device keeps what outlives a connection. patience: seconds without a
    coordinator until it ends. memory: what this machine grants, where that is less than the federation's file says.
    model: what the model is called here. trust: run code that the coordinator names."""

    folder: Path = Path("joined")
    patience: float = 600.0
    memory: int | None = None
    model: str | None = None
    wall: str = "auto"
    best_effort: bool = False
    trust: bool = False


@dataclass
class Joined:
    """How it was: the run, how it ended, how many turns were answered, and the bytes that passed."""

    device: str
    run: str = ""
    status: str = "waiting"
    answered: int = 0
    received: int = 0
    sent: int = 0
    wall: str = ""


class Dropped(FedgeError):
    """The coordinator has dropped this device and said why."""


def join(address: str, key: DeviceKey, options: Options, say: Say) -> Joined:
    """Be the device that the key is for until the run ends.

    Raises Dropped when the coordinator drops it, FedgeError when there has been none for too long or the method's code
    failed here, LimitError when there is no memory wall, Interrupted after Ctrl-C or SIGTERM: with the goodbye said.
    """
    wall = _wall(options)
    with heeded(_stop), _Member(address, key, options, wall, say) as member:
        return member.serve()


class _Member:
    """One device's side of a run, over any number of connections."""

    def __init__(self, address: str, key: DeviceKey, options: Options, wall: walls.Wall, say: Say):
        self.address = address
        self.key = key
        self.options = options
        self.wall = wall
        self.say = say
        self.joined = Joined(key.device, wall=wall.name)
        self.token = secrets.token_hex(16)
        self.line: Line | None = None
        self.bells: list[int] = []
        self.hub: Hub | None = None
        self.engine: Processes | None = None
        self.nursery: Nursery | None = None
        self.loaded = ""
        self.incarnations: dict[str, int] = {}
        self.stage: dict[str, Any] | None = None
        self.parts: Parts | None = None
        self.index = -1
        self.met = False  # whether the coordinator has said WELCOME over this connection
        self.number: int | None = None  # of the instruction that was carried out last, or is being
        self.reply: tuple[Kind, dict[str, Any], bytearray | None] | None = None  # what came of it
        self.folder: RunFolder | None = None
        self.left: Footprint | None = None
        self._foot: Any = None

    def __enter__(self) -> _Member:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_stage()
        if self.nursery is not None:
            self.nursery.close()
        if self.hub is not None:
            self.hub.close()
        self.wall.close()
        if self._foot is not None:
            self._foot.__exit__(None, None, None)

    # -- connections -------------------------------------------------------------------------------------------------

    def serve(self) -> Joined:
        """Connect, again and again, until it is over."""
        last_seen, said = time.monotonic(), ""
        incarnation = 0
        while True:
            incarnation = max(incarnation + 1, time.time_ns() // 10**6 * 10**5 + secrets.randbelow(10**5))
            limit = max(1 << 28, psutil.virtual_memory().available // 2)
            line = Line(self.address, self.key.device, incarnation, limit=limit, beat=_BEAT, key=self.key)
            self.met = False
            try:
                line.start()
                self.line, self.bells[:] = line, [line.bell]
                stage = self.index if self.engine is not None else -1
                line.post(Kind.HELLO, {"fedge": fedge.__version__, "token": self.token, "stage": stage})
                if any(self._deliver(line)):
                    return self.joined
            except Severed as error:
                if error.final:
                    raise FedgeError(str(error)) from None
                if self.met:
                    last_seen, said = time.monotonic(), ""
                left = last_seen + self.options.patience - time.monotonic()
                if left <= 0:
                    raise FedgeError(
                        f"no coordinator at {self.address} for {self.options.patience:.0f} s: {error}",
                        hint="--patience says how long to wait",
                    ) from None
                if said != str(error):
                    said = str(error)
                    self.say(f"{said}; trying again for {left:.0f} s")
                time.sleep(_AGAIN)
            except BaseException as error:
                with suppress(FedgeError):
                    parted = isinstance(error, Dropped) or self.joined.status != "running"
                    self._leave(line, heard=self.met and not parted)
                raise
            finally:
                self.line = None
                self.bells.clear()
                line.close(linger=2.0)
                counts = line.counts()
                self.joined.received += counts.body_in + counts.header_in
                self.joined.sent += counts.body_out + counts.header_out

    def _leave(self, line: Line, *, heard: bool) -> None:
        """Say goodbye; ``heard``: and stay a little until the coordinator answers it, since what a connection still
        holds when it is closed may be lost."""
        line.post(Kind.BYE)
        end = time.monotonic() + _FAREWELL
        while heard and (left := end - time.monotonic()) > 0:
            if any(delivery.kind in (Kind.BYE, Kind.FAIL) for delivery in line.receive(left)):
                return

    def _deliver(self, line: Line) -> Iterator[bool]:
        """Pass what arrives to the engine and what comes of it back; gives True when the run is over."""
        while True:
            for delivery in line.receive(0.0 if self.engine is not None else 0.5):
                yield self._take(delivery)
            if self.engine is not None:
                for event in self._events(self.engine):
                    self._tell(event)
            yield False

    def _events(self, engine: Processes) -> list[Any]:
        try:
            return engine.wait()
        except Interrupted:
            raise
        except FedgeError as error:  # the method's own code, or what it needs
            self._post(Kind.FAIL, {"cause": "error", "message": str(error)[:4000]})
            raise

    def _post(self, kind: Kind, header: dict[str, Any], data: bytearray | None = None) -> None:
        if self.line is not None:
            self.line.post(kind, header, None if data is None else Blob(data))

    # -- what the coordinator says -----------------------------------------------------------------------------------

    def _take(self, delivery: Delivery) -> bool:
        header = delivery.header
        if delivery.kind is Kind.FAIL:
            raise Dropped(f"the coordinator dropped this device: {header.get('message')}")
        if delivery.kind is Kind.BYE:
            return self._goodbye(header)
        if delivery.kind is Kind.WELCOME:
            self._welcomed(str(header["run"]))
        elif delivery.kind is Kind.EVENT and "stage" in header:
            self._offered(header)
        elif delivery.kind is Kind.EVENT and "part" in header:
            self._part(str(header["part"]), delivery.blob)
        elif self.engine is None:
            raise ProtocolError(f"the coordinator sent {delivery.kind.name} before a stage")
        elif delivery.kind is Kind.EVENT:
            self.engine.do(End(self.key.device))
        elif header["n"] != self.number:
            self.number, self.reply = header["n"], None
            self._obey(self.engine, delivery)
        elif self.reply is not None:  # asked again after the connection broke: the answer was lost on the way
            self._post(*self.reply)
        return False

    def _obey(self, engine: Processes, delivery: Delivery) -> None:
        header, device = delivery.header, self.key.device
        about = header["pinned"], header["stateful"]
        if delivery.kind is Kind.PREPARE:
            engine.do(Seek(device, tuple(int(index) for index in header["banned"]), *about))
            return
        if delivery.kind is not Kind.ASK or delivery.blob is None:
            raise ProtocolError(f"the coordinator's {delivery.kind.name} asks for nothing")
        if header.get("kept") is not None and self.folder is not None:
            forget_states(self.folder.file("checkpoints"), self.index, {device: int(header["kept"])})
        faults = tuple(Fault(**told) for told in header.get("faults", ()))
        place = int(header["round"]), int(header["turn"])
        engine.do(Send(device, *place, Blob(delivery.blob), *about, faults=faults))

    def _goodbye(self, header: dict[str, Any]) -> bool:
        self.joined.status = str(header.get("status"))
        self._post(Kind.BYE, {})
        if self.joined.status == "failed":
            raise FedgeError(f"the run failed: {header.get('message')}")
        if self.joined.status == "interrupted":
            self.say(f"the run was interrupted; waiting {self.options.patience:.0f} s for it to be resumed")
            return False
        self.say(f"the run is {self.joined.status}")
        return True

    def _welcomed(self, run: str) -> None:
        if self.joined.run and run != self.joined.run:
            self._close_stage()
        if self.folder is None or run != self.joined.run:
            if self._foot is not None:
                self._foot.__exit__(None, None, None)
            place = self.options.folder / slug(f"{run}-{self.key.device}")
            try:
                for part in ("checkpoints", "devices", "parts"):
                    (place / part).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FedgeError(f"{place} can't be made: {error.strerror}", hint="--keep DIR names another") from error
            self.folder = RunFolder(place)
            clear(self.folder, self.say)
            self._foot = footprint(self.folder)
            self.left = self._foot.__enter__()
        self.joined.run, self.joined.status, self.met = run, "running", True
        self.say(f"{self.key.device} takes part in {run}, behind wall {self.wall.name}")

    def _offered(self, header: dict[str, Any]) -> None:
        self._close_stage()
        if self.folder is None:
            raise ProtocolError("the coordinator offered a stage before it said which run it is")
        self.stage, self.parts = header, Parts(self.folder.file("parts"), header["parts"])
        if missing := self.parts.missing():
            sizes = sum(map(self.parts.size, missing))
            self.say(f"stage {header['stage']}: fetching {', '.join(missing)} ({sizes / (1 << 20):.1f} MiB)")
            self._post(Kind.EVENT, {"stage": header["stage"], "need": missing})
        else:
            self._take_up(header, self.parts)

    def _part(self, name: str, data: bytearray | None) -> None:
        if self.stage is None or self.parts is None or data is None:
            raise ProtocolError("the coordinator sent a part that nobody asked for")
        self.parts.put(name, data)
        if not self.parts.missing():
            self._take_up(self.stage, self.parts)

    # -- a stage -----------------------------------------------------------------------------------------------------

    def _take_up(self, stage: dict[str, Any], parts: Parts) -> None:
        """Have the zygote load what the stage is about, and open an engine for it."""
        brief = json.loads(parts.file("brief").read_bytes())
        order = dict(stage["model"])
        if self.options.model is not None:
            order["name"] = self.options.model
        if not self.options.trust:
            refuse_code(brief, order)
        self.say(f"stage {stage['stage']}: {brief['stage']} with {brief['key']}, {brief['rounds']} rounds")
        self.index = int(stage["stage"])
        if self.hub is None:
            self.hub = Hub()
        budget = Budget(**stage["budget"])
        if self.options.memory is not None:
            budget = replace(budget, memory=min(budget.memory, self.options.memory))
        rows, tests = int(stage["rows"]), int(stage["tests"])
        assert self.folder is not None
        place = Place(
            budget,
            np.arange(rows),
            None,
            self.folder.device_log(self.key.device).absolute(),
            np.arange(rows, rows + tests) if tests else None,
        )
        self._ready(brief, order, place)
        left = self.left
        self.engine = Processes(
            {self.key.device: place},
            self.wall,
            self._nursed(),
            self.hub,
            run=self.joined.run,
            limit=1,
            heartbeat=float(stage["heartbeat"]),
            incarnations=self.incarnations,
            revive=lambda: self._revive(brief, order, place),
            opened=lambda: None if left is None else left.note_groups(self.wall),
            fds=self.bells,
        )
        self._post(Kind.EVENT, {"staged": self.index})

    def _nursed(self) -> Nursery:
        assert self.nursery is not None
        return self.nursery

    def _ready(self, brief: dict[str, Any], order: dict[str, Any], place: Place) -> None:
        """A zygote that has loaded model and data, and taken up the stage."""
        parts, left, folder = self.parts, self.left, self.folder
        assert parts is not None
        assert left is not None
        assert folder is not None
        packed = parts.file("data")
        data = left.scratch / packed.name[:16]
        if not data.exists():
            unpack(packed, data, 2 * parts.size("data") + (1 << 20))
        if self.nursery is None:
            self.nursery = Nursery(folder.file("devices", "zygote.log"))
            self.nursery.await_ready("imports")
            self.loaded = ""
        what = json.dumps([order, str(data)], sort_keys=True)
        if what != self.loaded:
            self.nursery.command("load", data=str(data), model={**order, "folder": str(Path.cwd())})
            self.nursery.await_ready("load")
            self.loaded = what
        save_places({self.key.device: place}, left.scratch / "places")
        self.nursery.command(
            "stage",
            brief=brief,
            base=str(parts.file("base").absolute()),
            places=str(left.scratch / "places"),
            states=str(folder.file("checkpoints").absolute()),
            test=[None, 0],
        )
        self.nursery.await_ready("stage")

    def _revive(self, brief: dict[str, Any], order: dict[str, Any], place: Place) -> Nursery:
        self.say("the zygote died; starting another")
        if self.nursery is not None:
            self.nursery.close()
        self.nursery = None
        self._ready(brief, order, place)
        return self._nursed()

    def _close_stage(self) -> None:
        engine, self.engine = self.engine, None
        self.number = self.reply = None
        if engine is not None:
            engine.close()
            self.nursery = engine.nursery

    # -- what the engine says ----------------------------------------------------------------------------------------

    def _tell(self, event: Picked | Answered | Lost | Died) -> None:
        kind, data = Kind.FAIL, None
        header: dict[str, Any]
        if isinstance(event, Picked):
            refused = {str(index): why for index, why in event.choice.refused.items()}
            kind, header = Kind.READY, {"choice": {**asdict(event.choice), "refused": refused}}
        elif isinstance(event, Answered):
            kind, data = Kind.TELL, event.data
            told = ("round", "turn", "done", "stateful", "noted")
            header = {**{name: getattr(event, name) for name in told}, "peak": event.peak or 0}
            self.joined.answered += 1
            self.say(f"round {event.round}: answered, {len(event.data) / 1024:.0f} KiB")
        elif isinstance(event, Lost):
            self.say(f"lost: {event.cause}, {event.detail}")
            about = {"phase": event.phase, "peak": event.peak, "cap": event.cap, "message": event.detail}
            header = {"cause": event.cause if event.cause in ("memory", "fault") else "error", **about}
        else:
            self.say(f"its process died: {event.detail}")
            header = {"cause": "died", "message": event.detail}
        self.reply = kind, header, data
        self._post(*self.reply)


def _wall(options: Options) -> walls.Wall:
    try:
        return walls.choose(options.wall)  # type: ignore[arg-type]
    except LimitError as error:
        if not options.best_effort:
            raise LimitError(error.message, hint=error.hint or "--best-effort goes on without it") from error
        return walls.choose("none")


def _stop(number: int) -> None:
    raise Interrupted("left the federation", hint="the same command joins again")
