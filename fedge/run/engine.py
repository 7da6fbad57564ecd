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

    def open(self, now: float) -> None:
        """A round begins at this second of the virtual clock, which a real clock is set by."""
        ...

    def reach(self, now: float) -> None:
        """Block until a real clock has come to this second of the virtual one."""
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
    settle(coordinator, engine, coordinator.seek_all(), lambda: coordinator.settled, tell)
    if fresh:
        _require(coordinator)
        coordinator.open_stage()
    while coordinator.round < brief.rounds:
        _require(coordinator)
        if stopping():
            raise Interrupted("interrupted", hint="the checkpoint is kept")
        run_round(coordinator, engine, tell)
        coordinator.close_round()
        after_round()


def run_round(coordinator: Coordinator, engine: Engine, tell: Callable[[], None]) -> None:
    """One round, until nobody computes or picks any more."""
    over = lambda: not coordinator.round_open and coordinator.settled  # noqa: E731
    engine.open(coordinator.now)
    settle(coordinator, engine, coordinator.open_round(), over, tell)
    engine.reach(coordinator.now)


def settle(
    coordinator: Coordinator,
    engine: Engine,
    instructions: Iterable[Instruction],
    until: Callable[[], bool],
    tell: Callable[[], None],
) -> None:
    """Carry out instructions, and those that come of what happens, until ``until`` says so."""
    for instruction in instructions:
        engine.do(instruction)
    while not until():
        for event in engine.wait():
            for instruction in coordinator.handle(event):
                engine.do(instruction)
        tell()


def _require(coordinator: Coordinator) -> None:
    """Raise when too few devices are left: InfeasibleError if their budgets were too short, else FedgeError."""
    brief, accounts = coordinator.brief, coordinator.accounts
    ready = len(coordinator.ready)
    if ready >= (max(1, brief.quorum) if isinstance(brief.quorum, int) else 1):
        return
    gone = [account for account in accounts.values() if account.out]
    losses = [account.lost for account in gone if account.lost is not None]
    short = all(loss["cause"] == "memory" or loss["phase"] == "plan" for loss in losses)
    why = "; ".join(f"{a.name}: {a.reason if short or not a.lost else 'lost, ' + a.lost['cause']}" for a in gone[:4])
    kind = InfeasibleError if short else FedgeError
    raise kind(
        f"stage '{brief.stage}', round {coordinator.round}: {ready} of {len(accounts)} devices can take part",
        hint=why or "see events.jsonl",
    )
