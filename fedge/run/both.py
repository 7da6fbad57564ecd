"""Devices on this host and on others, in one stage."""

from __future__ import annotations

from collections.abc import Collection

from fedge.run.events import Event, Instruction
from fedge.run.guests import Guests
from fedge.run.processes import Processes


class Both:
    """An engine of two: processes on this host, and devices on others. Fulfils ``run.engine.Engine``."""

    def __init__(self, here: Processes, guests: Guests, elsewhere: Collection[str]):
        """``here`` has to have been told of the guests' hub, so that its waits end when something arrives there."""
        self.here = here
        self.guests = guests
        self._elsewhere = frozenset(elsewhere)

    def do(self, instruction: Instruction) -> None:
        """Carry out an instruction where its device is."""
        (self.guests if instruction.device in self._elsewhere else self.here).do(instruction)

    def wait(self) -> list[Event]:
        """What has happened at either."""
        return self.guests.poll() or [*self.here.wait(), *self.guests.poll()]

    def memory(self) -> dict[str, int]:
        """Bytes that the processes of this host hold."""
        return self.here.memory()

    def sending(self) -> set[str]:
        """The devices of whose answer a part is here."""
        return self.here.sending() | self.guests.sending()

    def open(self, now: float) -> None:
        """A round begins."""
        self.here.open(now)

    def reach(self, now: float) -> None:
        """A round is over."""
        self.here.reach(now)

    def close(self) -> None:
        """End the stage at both."""
        self.here.close()
        self.guests.close()
