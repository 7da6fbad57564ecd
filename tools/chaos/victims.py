"""The processes of a run, found below its launcher by pid, and what can be done to them."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

#: What tells a device of a warm campaign that its line is cut for a while, for long, or spoils a frame.
CUT, CUT_LONG, SPOIL = int(signal.SIGUSR1), int(signal.SIGRTMIN) + 1, int(signal.SIGUSR2)


@dataclass(frozen=True)
class Victim:
    """kind: one of ``KINDS``. name: what the process calls itself, for whoever reads the ledger."""

    kind: str
    pid: int
    name: str


def _living(found: Iterable[psutil.Process]) -> list[psutil.Process]:
    kept = []
    for one in found:
        with suppress(psutil.Error):
            if one.status() != psutil.STATUS_ZOMBIE:
                kept.append(one)
    return sorted(kept, key=lambda one: one.pid)


def _launcher(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return _living([psutil.Process(pid)])
    return []


def zygotes(pid: int) -> list[psutil.Process]:
    """The launcher's children that lead a session of their own; others of its children only prove the memory wall."""
    found = []
    for launcher in _launcher(pid):
        with suppress(psutil.NoSuchProcess):
            for child in launcher.children():
                with suppress(ProcessLookupError):
                    if os.getsid(child.pid) == child.pid:
                        found.append(child)
    return _living(found)


def devices(pid: int) -> list[psutil.Process]:
    """Whatever the launcher's zygotes have forked."""
    found: list[psutil.Process] = []
    for zygote in zygotes(pid):
        with suppress(psutil.NoSuchProcess):
            found += zygote.children(recursive=True)
    return _living(found)


def _running(found: Callable[[int], list[psutil.Process]]) -> Callable[[int], list[psutil.Process]]:
    def those(pid: int) -> list[psutil.Process]:
        kept = []
        for one in found(pid):
            with suppress(psutil.Error):
                if one.status() != psutil.STATUS_STOPPED:
                    kept.append(one)
        return kept

    return those


#: What can be struck by a signal: who is meant, and the signal's number.
KINDS: dict[str, tuple[Callable[[int], list[psutil.Process]], int]] = {
    "launcher": (_launcher, signal.SIGKILL),
    "zygote": (zygotes, signal.SIGKILL),
    "device": (devices, signal.SIGKILL),
    "frozen-device": (_running(devices), signal.SIGSTOP),
    "frozen-zygote": (_running(zygotes), signal.SIGSTOP),
    "partition": (_running(devices), CUT),
    "long-partition": (_running(devices), CUT_LONG),
    "corrupt": (_running(devices), SPOIL),
}
#: The run's own disk, which is filled to the last byte.
DISK = "disk"
#: Those that only devices of a warm campaign know what to make of.
WARM = ("partition", "long-partition", "corrupt")
COLD = ("launcher", "zygote", "device")
USUAL = (*COLD, "frozen-device", *WARM, DISK)


def strike(launcher: int, kinds: Sequence[str], chance: random.Random) -> Victim | None:
    """Send its signal to a process of the first of ``kinds`` that has one alive; None when nobody is left.

    ``chance`` says which one of several. The launcher is this process's child, so its pid can't be another's by now.
    """
    for kind in kinds:
        find, number = KINDS[kind]
        alive = find(launcher)
        while alive:
            one = alive.pop(chance.randrange(len(alive)))
            with suppress(psutil.Error):
                name = one.name()
                one.send_signal(number)  # psutil compares the start time, lest the pid has been used again
                return Victim(kind, one.pid, name)
    return None


def marked(mark: str) -> list[psutil.Process]:
    """The processes in whose environment a value is ``mark``: those of a run, wherever they hang by now."""
    found = []
    for one in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            if one.pid != os.getpid() and mark in one.environ().values():
                found.append(one)
    return _living(found)
