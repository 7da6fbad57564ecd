"""The inline driver: the same rounds in this one process, without walls, for debugging and for comparison.

Memory verdicts are the planner's. Payloads take the same way through bytes as between processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedge.core.cost import Budget
from fedge.core.method import Rows
from fedge.errors import FedgeError
from fedge.meter.spans import SpanMeter
from fedge.run.brief import Brief
from fedge.run.events import Answered, End, Event, Hurry, Instruction, Lost, Picked, Seek
from fedge.run.faults import losing
from fedge.run.seat import Ground, Seat


class Inline:
    """Fulfils ``run.engine.Engine`` with every device in this process."""

    def __init__(
        self,
        brief: Brief,
        ground: Ground,
        budgets: Mapping[str, Budget],
        rows: Mapping[str, Rows],
        states: Path,
        tests: Mapping[str, Rows] | None = None,
    ):
        self._brief = brief
        self._ground = ground
        self._budgets = budgets
        self._rows = rows
        self._states = states
        self._tests = tests or {}
        self._seats: dict[str, Seat] = {}
        self._events: list[Event] = []

    def do(self, instruction: Instruction) -> None:
        device = instruction.device
        if isinstance(instruction, Seek):
            seat = Seat(
                self._brief,
                self._ground,
                device,
                self._budgets[device],
                self._rows[device],
                self._states,
                SpanMeter(),
                tests=self._tests.get(device),
            )
            seat.restore(instruction.stateful)
            self._seats[device] = seat
            self._events.append(Picked(device, seat.pick(instruction.banned, instruction.pinned)))
        elif isinstance(instruction, End):
            self._seats[device].end()
        elif isinstance(instruction, Hurry):
            pass  # nothing waits here
        else:
            seat = self._seats[device]
            peak = self._peak(seat)
            if peak > self._budgets[device].memory:
                lost = Lost(
                    device, "memory", None, peak, self._budgets[device].memory, "by the plan: inline has no walls"
                )
                self._events.append(lost)
                return
            if fault := losing(instruction.faults):
                # another process would begin from the state that was saved last
                seat.end()
                detail = f"{fault.kind.replace('_', ' ')}: as the file asks; inline has no process to strike"
                self._events.append(Lost(device, "fault", fault.kind, detail=detail))
                return
            answer = seat.answer(instruction.round, instruction.turn, instruction.blob.view)
            self._events.append(
                Answered(
                    device,
                    instruction.round,
                    instruction.turn,
                    answer.data,
                    answer.done,
                    answer.stateful,
                    peak,
                    answer.noted,
                )
            )

    def _peak(self, seat: Seat) -> int:
        assert seat.variant is not None
        return self._brief.menu[self._brief.variants.index(seat.variant)].cost.peak_memory

    def wait(self) -> list[Event]:
        if not self._events:
            raise FedgeError("nobody has anything to do, and the round is not over")
        events, self._events = self._events, []
        return events

    def memory(self) -> dict[str, int]:
        """Nothing: the devices are not processes of their own."""
        return {}

    def sending(self) -> set[str]:
        """Nobody: an answer is there at once."""
        return set()

    def open(self, now: float) -> None:
        """Nothing: this driver knows the virtual clock only."""

    def reach(self, now: float) -> None:
        """Nothing, likewise."""

    def close(self) -> None:
        self._seats.clear()
