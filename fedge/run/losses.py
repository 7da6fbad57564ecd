"""The devices that a round loses: the account of each loss, who may begin again, and what faults came to. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedge.run.events import Died, Lost
from fedge.run.faults import BY_HAND, Faults
from fedge.run.ledger import Account


class Losses:
    """The losses of one stage, written into the devices' accounts.

    dropped: why each device takes no further part in the round under way. paused: devices held still by hand.
    """

    def __init__(self, accounts: Mapping[str, Account], faults: Faults, restart: int, note: Callable[..., None]):
        """restart: how often a device's process is started again in a stage. note: keeps an event of the stage."""
        self._accounts = accounts
        self._faults = faults
        self._restart = restart
        self._note = note
        self.dropped: dict[str, str] = {}
        self.paused: set[str] = set()

    def drop(self, event: Lost, round: int, **details: Any) -> None:
        """Note a loss; the device takes no further part in this round."""
        account = self._accounts[event.device]
        if event.phase in BY_HAND:
            self._faults.by_hand(event.device, str(event.phase))
        account.losses += 1
        account.lost = {
            "round": round,
            "cause": event.cause,
            "phase": event.phase,
            "peak": event.peak,
            "cap": event.cap,
        }
        self._note("lost", device=event.device, **account.lost, **details)
        self.dropped[event.device] = event.cause
        self.settle(event.device, "late" if event.cause == "deadline" else "lost", event.detail)

    def begins_again(self, event: Died) -> bool:
        """Whether a device whose process died has a start left; it has one fewer then."""
        account = self._accounts[event.device]
        self._note("died", device=event.device, detail=event.detail, restarts=account.restarts)
        if account.restarts >= self._restart:
            return False
        account.restarts += 1
        return True

    def settle(self, device: str, end: str, detail: str = "") -> None:
        """Count the faults that struck a device's turn by how it ended."""
        for told in self._faults.settle(device, end, self._accounts[device].faults, detail):
            self._note("fault", **told)
