"""Watching a run from within: snapshots of where it stands, for whoever looks on and for ``progress.json``."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from fedge.report.snapshot import DeviceAt, Snapshot
from fedge.run.brief import Brief
from fedge.run.coordinator import Coordinator
from fedge.run.engine import Engine
from fedge.run.folder import PROGRESS, RunFolder, keep_beside
from fedge.run.ledger import Account

See = Callable[[Snapshot], None]

#: Seconds between two snapshots for those who look on, and between two writings of the file.
_LOOK, _WRITE = 0.25, 1.0
#: Watching takes at most this share of a run's time: with thousands of devices snapshots become rarer.
_SHARE = 0.02
#: Rounds whose mean is the present pace.
_PACE = 8
_MEASURES = ("perplexity", "accuracy", "loss")


class _Due:
    """Says when something is to be done again: after ``pause`` seconds, or later where doing it takes long."""

    def __init__(self, pause: float):
        self._pause = pause
        self._at = 0.0

    def now(self) -> bool:
        return time.monotonic() >= self._at

    def done(self, began: float) -> None:
        now = time.monotonic()
        self._at = now + max(self._pause, (now - began) / _SHARE)


class Watch:
    """Where one run stands. ``look`` may be called as often as one likes: most calls only read the clock.

    rounds: those of each stage of the federation. elapsed: seconds spent on the run. see: who looks on, if anybody.
    A disk that is full does not end a run here: what the file says is for looking at only.
    """

    def __init__(
        self,
        folder: RunFolder,
        federation: str,
        rounds: Sequence[int],
        elapsed: Callable[[], float],
        see: See | None,
    ):
        self._folder = folder
        self._federation = federation
        self._rounds = list(rounds)
        self._elapsed = elapsed
        self._see = see
        self._phase = "preparing"
        self._brief: Brief | None = None
        self._coordinator: Coordinator | None = None
        self._engine: Engine | None = None
        self._measure: str | None = None
        self._curve: list[float] = []
        self._pace: deque[float] = deque(maxlen=_PACE)
        self._round_began = elapsed()
        self._seen, self._written = _Due(_LOOK), _Due(_WRITE)

    # -- what the run tells ------------------------------------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """The run is at another phase, one of ``report.snapshot.PHASES``."""
        self._phase = phase
        self._show(force=True)

    def enter_stage(self, brief: Brief, coordinator: Coordinator) -> None:
        """A stage begins, or is taken up again where the coordinator stands."""
        self._brief, self._coordinator, self._engine = brief, coordinator, None
        self._measure, self._curve = None, []
        if coordinator.round:
            for line in self._folder.read_lines("metrics.jsonl"):
                if line.get("stage_index") == brief.index and line.get("device") is None:
                    self._note(line)
        self.enter("rounds")

    def enter_rounds(self, engine: Engine | None) -> None:
        """The stage's rounds are run by ``engine`` from now on; None: they are over."""
        self._engine = engine
        self._round_began = self._elapsed()

    def round_done(self, metrics: dict[str, Any] | None) -> None:
        """A round is over; metrics: what its test gave, None without one."""
        now = self._elapsed()
        self._pace.append(now - self._round_began)
        self._round_began = now
        if metrics is not None:
            self._note(metrics)

    def look(self) -> None:
        """Make a snapshot if one is due."""
        if self._written.now() or (self._see is not None and self._seen.now()):
            self._show(force=False)

    def _note(self, metrics: dict[str, Any]) -> None:
        measure = next((name for name in _MEASURES if isinstance(metrics.get(name), (int, float))), None)
        if measure is not None:
            self._measure = measure
            self._curve.append(float(metrics[measure]))

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def _show(self, *, force: bool) -> None:
        write = force or self._written.now()
        began = time.monotonic()
        snapshot = self._snapshot(with_memory=write)
        if self._see is not None:
            self._see(snapshot)
            self._seen.done(began)
        if write:
            keep_beside(self._folder.file(PROGRESS), snapshot.to_json())
            self._written.done(began)

    def _snapshot(self, *, with_memory: bool) -> Snapshot:
        brief, coordinator = self._brief, self._coordinator
        known: dict[str, Any] = {
            "run": os.fspath(self._folder.path),
            "federation": self._federation,
            "at": time.time(),
            "elapsed_s": round(self._elapsed(), 3),
            "phase": self._phase,
            "stages": len(self._rounds),
        }
        if brief is None or coordinator is None:
            return Snapshot(**known)
        memory = self._engine.memory() if self._engine is not None and with_memory else {}
        sending = self._engine.sending() if self._engine is not None else set()
        under_way = self._phase == "rounds" and coordinator.round < brief.rounds
        return Snapshot(
            **known,
            stage=brief.stage,
            stage_index=brief.index,
            method=brief.key,
            round=coordinator.round + under_way,
            rounds=brief.rounds,
            virtual_s=coordinator.now,
            left_s=self._left(brief, coordinator),
            measure=self._measure,
            curve=tuple(self._curve),
            devices=tuple(
                _device(brief, account, _state(coordinator.doing(name), name in sending), memory.get(name))
                for name, account in coordinator.accounts.items()
            ),
        )

    def _left(self, brief: Brief, coordinator: Coordinator) -> float | None:
        """Seconds that the rounds of this and the following stages take, each as long as the latest are on average."""
        if not self._pace:
            return None
        rounds = brief.rounds - coordinator.round + sum(self._rounds[brief.index + 1 :])
        in_round = self._elapsed() - self._round_began
        return max(0.0, rounds * sum(self._pace) / len(self._pace) - in_round)


def _state(doing: str, sending: bool) -> str:
    return "sending" if sending and doing == "computing" else doing


def _device(brief: Brief, account: Account, state: str, memory: int | None) -> DeviceAt:
    offer = None if account.choice is None else brief.menu[account.choice]
    return DeviceAt(
        name=account.name,
        state=state,
        method=offer.method if offer else None,
        variant=offer.variant if offer else None,
        memory=memory,
        budget_memory=int(account.budget.memory),
        bytes_up=account.bytes_up,
        bytes_down=account.bytes_down,
        rounds=account.rounds,
        losses=account.losses,
        lost=account.lost["cause"] if account.lost else None,
    )
