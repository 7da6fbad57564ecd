"""What each device of a stage runs: who is picking, what was picked, and why a device picks again. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from fedge.run.brief import Brief
from fedge.run.events import Instruction, Lost, Picked, Seek
from fedge.run.ledger import Account
from fedge.run.reconsider import reconsider


class Picking:
    """The picks of one stage, written into the devices' accounts; ``seeking`` are the devices that pick just now."""

    def __init__(self, brief: Brief, accounts: Mapping[str, Account], note: Callable[..., None]):
        """``note`` keeps an event of the stage: its name and what there is to say of it."""
        self._brief = brief
        self._accounts = accounts
        self._note = note
        self.seeking: set[str] = set()

    def seek(self, account: Account, pinned: int | None = None) -> Seek:
        """Have a device pick; it keeps ``pinned``, an offer's index, where one is given."""
        self.seeking.add(account.name)
        return Seek(account.name, tuple(sorted(account.banned)), pinned, account.stateful)

    def picked(self, event: Picked, round: int) -> bool:
        """Write down a pick; False where it is what the device had picked before its process was started again."""
        account = self._accounts[event.device]
        self.seeking.discard(event.device)
        choice = event.choice
        if account.choice is not None and account.choice == choice.index:
            return False  # the reason stays the one that it had then
        account.choice, account.reason, account.runner_up = choice.index, choice.reason, choice.runner_up
        offer = None if choice.index is None else self._brief.menu[choice.index]
        self._note(
            "picked" if offer else "left-out",
            device=event.device,
            method=offer.method if offer else None,
            variant=offer.variant if offer else None,
            predicted_peak=offer.cost.peak_memory if offer else None,
            reason=choice.reason,
        )
        if offer is None:
            account.out = True
            if account.lost is None:
                account.lost = _left_out(choice.limit or "memory", round)
        return True

    def after_loss(self, event: Lost) -> list[Instruction]:
        """What a loss means for a pick: something smaller after a death of memory, nothing ever after a breach."""
        account = self._accounts[event.device]
        if event.cause == "memory" and account.choice is not None:
            need = self._brief.menu[account.choice].cost.peak_memory
            account.banned |= {offer.index for offer in self._brief.menu if offer.cost.peak_memory >= need}
            account.choice = None
            return [self.seek(account)]
        if event.cause in ("protocol", "host"):
            account.out = True
            self.seeking.discard(event.device)
        elif event.device in self.seeking:  # struck by hand while it picked
            return [self.seek(account, account.choice)]
        return []

    def after_round(self, round: int, spared: Collection[str]) -> list[Instruction]:
        """Have devices pick again whose battery or lateness asks for it; one that can't go on takes no further part.

        ``spared``: devices that are not asked, since they are under way or pick elsewhere.
        """
        out: list[Instruction] = []
        for name, account in self._accounts.items():
            if name in spared or name in self.seeking:
                continue
            found = reconsider(account, self._brief.menu, self._brief.rounds, self._brief.rounds - round - 1)
            if found is None:
                continue
            self._note("reconsiders", device=name, reason=found.reason)
            account.overdue = 0
            account.banned |= found.banned
            account.choice = None
            if found.spent:
                account.out, account.reason = True, found.reason
                account.lost = _left_out("battery", round)
            else:
                out.append(self.seek(account))
        return out


def _left_out(limit: str, round: int) -> dict[str, Any]:
    """What an account says of a device that can't go on for want of ``limit``."""
    return {"round": round, "cause": limit, "phase": "plan", "peak": None, "cap": None}
