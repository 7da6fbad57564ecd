"""When a device picks again in the middle of a stage: its battery runs low, or its answers keep coming too late.

Out of memory is dealt with where the loss is told. No torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fedge.plan.choose import Estimate, Offer, estimate
from fedge.run.ledger import Account
from fedge.units import format_joules

PATIENCE = 2
"""Rounds in a row that a device may answer too late before it looks for something quicker."""


@dataclass(frozen=True)
class Again:
    """Why a device picks again, and what is out of the question from now on; ``spent``: nothing is left to it."""

    reason: str
    banned: frozenset[int]
    spent: bool = False


def reconsider(account: Account, menu: Sequence[Offer], rounds: int, after: int) -> Again | None:
    """What a round that is over means for a device's pick; ``after`` rounds of ``rounds`` come after it.

    What is left of a battery is spread anew over the rounds that are left.
    """
    if account.choice is None or account.out or not after:
        return None
    left = [estimate(offer, account.budget) for offer in menu if offer.index not in account.banned]
    mine = next((e for e in left if e.offer.index == account.choice), None)
    if mine is None:  # taken though it is out of the question: `pick: richest`
        return None
    return _battery(account, left, mine, rounds, after) or _lateness(account, left, mine)


def _battery(account: Account, left: Collection[Estimate], mine: Estimate, rounds: int, after: int) -> Again | None:
    if account.budget.battery is None:
        return None
    whole = account.budget.battery * rounds
    share = (whole - account.energy_j) / after
    # a round that costs what the plan says leaves exactly its share, but for rounding
    if mine.energy <= share * (1 + 1e-6):
        return None
    dear = frozenset(e.offer.index for e in left if e.energy > share)
    reason = f"battery: {format_joules(account.energy_j)} of {format_joules(whole)} are gone, {after} rounds are left"
    return Again(reason, dear, spent=all(e.offer.index in dear or e.broken for e in left))


def _lateness(account: Account, left: Collection[Estimate], mine: Estimate) -> Again | None:
    if account.overdue < PATIENCE:
        return None
    slow = frozenset(e.offer.index for e in left if e.seconds >= mine.seconds)
    if all(e.offer.index in slow or e.broken for e in left):
        return None  # nothing quicker is left: it goes on, and some of its answers may be in time
    return Again(f"deadline: {account.overdue} answers in a row came too late", slow)
