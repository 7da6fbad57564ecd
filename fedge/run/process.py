"""One process that devices compute in: whom it has taken up, what it is doing, and what its end means."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fedge.emulation.wall import Group
from fedge.errors import FedgeError, MethodError
from fedge.run.events import Died, Event, Lost, Resumed, Seek, Send
from fedge.run.faults import Fault, losing
from fedge.run.places import Place
from fedge.run.worker import held


@dataclass
class Host:
    """One process: whom it has taken up, and what it is doing. ``work`` waits for its first word.

    picks: what it is busy with is picking. paused: it is held still by hand; stale: it was at work then.
    """

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
    pinned: int | None = None
    faults: tuple[Fault, ...] = ()
    picks: bool = False
    paused: bool = False
    stale: bool = False

    @property
    def struck(self) -> bool:
        """Whether it was killed by hand, and its end is not told yet: what it is given meanwhile is lost with it."""
        return any(fault.kind == "kill" for fault in self.faults)

    def signal(self, number: int) -> None:
        """Send the process a signal, where it has been forked and is still there."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def peak(self) -> int:
        """The most bytes that its device has held, counted as a budget is."""
        return held(self.group.peak(), self.baseline, self.shared)


def ending(host: Host, status: int, phase: str, place: Place, heartbeat: float, *, wanted: bool) -> Event | None:
    """What the end of a process means for its device, which lives at ``place``; None where it means nothing.

    status: as ``os.waitpid`` gives it. heartbeat: the seconds of silence after which it is killed. wanted: whether the
    device needs it still. Raises MethodError or FedgeError for an error of the method's or of fedge's own.
    """
    device, failed, cap = host.device, host.failed, place.budget.memory
    if host.leaving:
        return Resumed(device) if host.stale else None
    if (fault := losing(host.faults)) and (failed is None or failed["kind"] in ("fault", "memory")):
        return _struck(host, fault, status, cap, heartbeat)
    if host.group.killed_for_memory():
        return Lost(device, "memory", phase, host.peak(), cap, "killed at its memory wall")
    if failed is not None and failed["kind"] == "memory":
        return Lost(device, "memory", failed["phase"], int(failed["peak"]), cap, str(failed["message"]))
    if failed is not None and failed["kind"] == "error":
        kind = MethodError if failed["method"] else FedgeError
        raise kind(str(failed["message"]), hint=f"see {place.log}")
    if not wanted:
        return None
    said = f": {failed['message']}" if failed else ""
    return Died(device, _in_words(status) + said)


def _struck(host: Host, fault: Fault, status: int, memory: int, heartbeat: float) -> Lost:
    """How a device was lost that was struck because the file asks for it."""
    said = _in_words(status) if host.failed is None else str(host.failed["message"])
    peak = cap = None
    if fault.kind == "out_of_memory" and host.baseline:
        peak, cap = host.peak(), memory
        said = "killed at its memory wall" if host.group.killed_for_memory() else said
    elif fault.kind == "hang":
        said = f"no sign of life for {heartbeat:g} s, then {said}"
    return Lost(host.device, "fault", fault.kind, peak, cap, f"{fault.kind.replace('_', ' ')}: {said}")


def _in_words(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return f"ended with code {os.WEXITSTATUS(status)}"
