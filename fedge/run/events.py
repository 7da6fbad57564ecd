"""What passes between a coordinator and whoever carries out its instructions: instructions out, events in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedge.emulation.pace import Timing
from fedge.plan.choose import Choice
from fedge.run.faults import Fault
from fedge.wire.blobs import Blob


@dataclass(frozen=True)
class Send:
    """Ask a device: put these bytes before it as this turn of this round.

    blob: shared by every device that is asked the same. pinned, stateful: the offer that the device has picked and the
    number under which its state was saved last, for a process that has to take the device up first. timing: when on
    the virtual clock all this is to happen; None for what is only replayed. faults: what is to
    happen to the device on this turn.
    """

    device: str
    round: int
    turn: int
    blob: Blob
    pinned: int | None = None
    stateful: int | None = None
    timing: Timing | None = None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Hurry:
    """Enough devices have answered: a real clock need not wait for what this one still has to do or to send."""

    device: str


@dataclass(frozen=True)
class End:
    """Tell a device that its conversation is over; ``why``: it broke the rules and is dropped."""

    device: str
    why: str = ""


@dataclass(frozen=True)
class Seek:
    """Have a device pick (again); starts its process when it has none.

    pinned: keep this offer. stateful: the number under which its state was saved last, None when it has none.
    """

    device: str
    banned: tuple[int, ...] = ()
    pinned: int | None = None
    stateful: int | None = None


Instruction = Send | Hurry | End | Seek


@dataclass(frozen=True)
class Picked:
    """A device has picked."""

    device: str
    choice: Choice


@dataclass(frozen=True)
class Answered:
    """A device's answer.

    stateful: the number under which its state is saved by now, None when it keeps none. peak: bytes that it has held
    at most, None where nothing measures it. paced: under a real clock, ``wall_s`` and ``cpu_s`` that it took on the
    host, ``behind_s``, by how much it was later than the virtual clock says, and the ``slowdown`` at which it ran.
    """

    device: str
    round: int
    turn: int
    data: bytearray
    done: bool
    stateful: int | None
    peak: int | None = None
    noted: dict[str, Any] = field(default_factory=dict)
    paced: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """The emulated world lost a device: it went over its memory, broke the protocol, or a fault was asked for."""

    device: str
    cause: str
    phase: str | None = None
    peak: int | None = None
    cap: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class Died:
    """The host lost a device's process; its turn is replayed in a new one."""

    device: str
    detail: str = ""


@dataclass(frozen=True)
class Paused:
    """A device is held still by hand: it takes no part until a Resumed."""

    device: str


@dataclass(frozen=True)
class Resumed:
    """A device that was held still may take part again."""

    device: str


Event = Picked | Answered | Lost | Died | Paused | Resumed
