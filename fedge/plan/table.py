"""The rows that ``fedge plan`` prints: every device and every variant on every stage's menu, and what is picked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from fedge.core.cost import Budget
from fedge.plan.choose import Offer, choose, describe_shortfall, estimate


class Stage(Protocol):
    """What the table needs of a stage."""

    @property
    def stage(self) -> str: ...
    @property
    def menu(self) -> Sequence[Offer]: ...
    @property
    def prefer(self) -> str: ...
    @property
    def freely(self) -> bool: ...


def rows(stage: Stage, budgets: Mapping[str, Budget]) -> Iterable[dict[str, Any]]:
    """One flat record for each device and offer; bytes, seconds and joules a round."""
    for device, budget in budgets.items():
        choice = choose(stage.menu, budget, prefer=stage.prefer, freely=stage.freely)
        for offer in stage.menu:
            found = estimate(offer, budget)
            yield {
                "device": device,
                "stage": stage.stage,
                "method": offer.method,
                "variant": offer.variant,
                "fits": not found.broken,
                "limit": describe_shortfall(found.broken[0]) if found.broken else None,
                "chosen": offer.index == choice.index,
                "reason": choice.reason if offer.index == choice.index else None,
                "peak_memory": offer.cost.peak_memory,
                "budget_memory": budget.memory,
                "virtual_s": found.seconds,
                "bytes_up": offer.cost.bytes_up,
                "bytes_down": offer.cost.bytes_down,
                "energy_j": found.energy,
                "measured": offer.cost.measured,
            }
