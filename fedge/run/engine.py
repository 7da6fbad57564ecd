"""What carries out a coordinator's instructions, and the loop that runs a stage on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from fedge.errors import FedgeError, InfeasibleError, Interrupted
from fedge.run.coordinator import Coordinator
from fedge.run.events import Event, Instruction


class Engine(Protocol):
    """Processes behind ZeroMQ, or this process alone."""

    def do(self, instruction: Instruction) -> None:
        """Carry out an instruction; what comes of it arrives from ``wait``."""
        ...

    def wait(self) -> list[Event]:
        """Block until something has happened."""
        ...

    def memory(self) -> dict[str, int]:
        """Bytes that each device's process holds now, counted as its budget is; a device without one is left out."""
        ...

    def sending(self) -> set[str]:
        """The devices of whose answer a part is here."""
        ...

    def close(self) -> None:
        """End every device of the stage."""
        ...


def run_stage(
    coordinator: Coordinator,
    engine: Engine,
    *,
    fresh: bool,
    after_round: Callable[[], None],
    stopping: Callable[[], bool],
    tell: Callable[[], None],
) -> None:
    """All rounds of a stage.

    fresh: begin with the method's first state (else the coordinator was restored). after_round: evaluate, checkpoint.
    stopping: whether to leave after the present round. tell: called whenever something has happened. Raises
    InfeasibleError when memory leaves too few devices, FedgeError when other losses do, Interrupted when asked to stop.
    """
    brief = coordinator.brief

    def settle(instructions: Iterable[Instruction], until: Callable[[], bool]) -> None:
        for instruction in instructions:
            engine.do(instruction)
        while not until():
            for event in engine.wait():
                for instruction in coordinator.handle(event):
                    engine.do(instruction)
            tell()

    if coordinator.round == brief.rounds:
        return
    settle(coordinator.seek_all(), lambda: coordinator.settled)
    if fresh:
        _require(coordinator)
        coordinator.open_stage()
    while coordinator.round < brief.rounds:
        _require(coordinator)
        if stopping():
            raise Interrupted("interrupted", hint="the checkpoint is kept")
        settle(coordinator.open_round(), lambda: not coordinator.round_open and coordinator.settled)
        coordinator.close_round()
        after_round()


def _require(coordinator: Coordinator) -> None:
    """Raise when too few devices are left: InfeasibleError if memory was too short, else FedgeError."""
    brief, accounts = coordinator.brief, coordinator.accounts
    ready = len(coordinator.ready)
    if ready >= (max(1, brief.quorum) if isinstance(brief.quorum, int) else 1):
        return
    gone = [account for account in accounts.values() if account.out]
    causes = {account.lost["cause"] for account in gone if account.lost is not None}
    short = causes <= {"memory"}
    why = "; ".join(f"{a.name}: {a.reason if short or not a.lost else 'lost, ' + a.lost['cause']}" for a in gone[:4])
    kind = InfeasibleError if short else FedgeError
    raise kind(
        f"stage '{brief.stage}', round {coordinator.round}: {ready} of {len(accounts)} devices can take part",
        hint=why or "see events.jsonl",
    )
