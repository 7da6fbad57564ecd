"""What passes between a coordinator and whoever carries out its instructions: instructions out, events in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedge.plan.choose import Choice
from fedge.wire.blobs import Blob


@dataclass(frozen=True)
class Send:
    """Ask a device: put these bytes before it as this turn of this round.

    blob: shared by every device that is asked the same. pinned, stateful: the offer that the device has picked and the
    number under which its state was saved last, for a process that has to take the device up first.
    """

    device: str
    round: int
    turn: int
    blob: Blob
    pinned: int | None = None
    stateful: int | None = None


@dataclass(frozen=True)
class End:
    """Tell a device that its conversation is over."""

    device: str


@dataclass(frozen=True)
class Seek:
    """Have a device pick (again); starts its process when it has none.

    pinned: keep this offer. stateful: the number under which its state was saved last, None when it has none.
    """

    device: str
    banned: tuple[int, ...] = ()
    pinned: int | None = None
    stateful: int | None = None


Instruction = Send | End | Seek


@dataclass(frozen=True)
class Picked:
    """A device has picked."""

    device: str
    choice: Choice


@dataclass(frozen=True)
class Answered:
    """A device's answer.

    stateful: the number under which its state is saved by now, None when it keeps none. peak: bytes that it has held
    at most, None where nothing measures it.
    """

    device: str
    round: int
    turn: int
    data: bytearray
    done: bool
    stateful: int | None
    peak: int | None = None
    noted: dict[str, Any] = field(default_factory=dict)


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


Event = Picked | Answered | Lost | Died
