"""What carries out a coordinator's instructions, and the loop that runs a stage on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from fedge.errors import InfeasibleError, Interrupted
from fedge.run.coordinator import Coordinator, Event, Instruction


class Engine(Protocol):
    """Processes behind ZeroMQ, or this process alone."""

    def do(self, instruction: Instruction) -> None:
        """Carry out an instruction; what comes of it arrives from ``wait``."""
        ...

    def wait(self) -> list[Event]:
        """Block until something has happened."""
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
    InfeasibleError when nobody can take part, Interrupted when asked to stop.
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

    settle(coordinator.seek_all(), lambda: coordinator.settled)
    _require(coordinator, "can afford anything that the stage offers")
    if fresh:
        coordinator.open_stage()
    while coordinator.round < brief.rounds:
        if stopping():
            raise Interrupted("interrupted", hint="the checkpoint is kept")
        settle(coordinator.open_round(), lambda: not coordinator.round_open and coordinator.settled)
        coordinator.close_round()
        after_round()
        _require(coordinator, "is left")


def _require(coordinator: Coordinator, what: str) -> None:
    ready, share = len(coordinator.ready), coordinator.brief.quorum
    needed = max(1, int(share) if share >= 1 else 1)
    if ready < needed:
        reasons = "; ".join(
            f"{name}: {account.reason}" for name, account in list(coordinator.accounts.items())[:4] if account.out
        )
        raise InfeasibleError(
            f"stage '{coordinator.brief.stage}': only {ready} of {len(coordinator.accounts)} devices {what}",
            hint=reasons or "see events.jsonl",
        )
