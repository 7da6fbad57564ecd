"""The rows that ``fedge plan`` prints: every device and every variant on every stage's menu, and what is picked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedge.core.cost import Budget
from fedge.plan.choose import Choice, Estimate, Offer, Prefer, choose, describe_shortfall, estimate, joules_by_part
from fedge.units import format_bytes, format_seconds


def rows(
    stage: str,
    menu: Sequence[Offer],
    budgets: Mapping[str, Budget],
    *,
    index: int = 0,
    prefer: Prefer = "quality",
    freely: bool = True,
    rescue: Sequence[Offer] = (),
    assumed: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """One flat record for each device and offer; bytes, seconds and joules a round.

    ``rescue``: what a device might still do that can afford nothing; ``left_out`` says why, and ``could`` what.
    """
    known: dict[Budget, tuple[Choice, list[Estimate], str | None]] = {}
    for device, budget in budgets.items():
        if budget not in known:
            choice = choose(menu, budget, prefer=prefer, freely=freely)
            found = [estimate(offer, budget) for offer in menu]
            known[budget] = (choice, found, None if choice.index is not None else still(rescue, budget))
        choice, found, could = known[budget]
        for offer, seen in zip(menu, found, strict=True):
            chosen = offer.index == choice.index
            yield {
                "device": device,
                "stage": stage,
                "stage_index": index,
                "method": offer.method,
                "variant": offer.variant,
                "fits": not seen.broken,
                "limit": describe_shortfall(seen.broken[0]) if seen.broken else None,
                "chosen": chosen,
                "reason": choice.reason if chosen else None,
                "runner_up": offer.index == choice.runner_up,
                "left_out": choice.reason if choice.index is None else None,
                "could": could,
                "peak_memory": offer.cost.peak_memory,
                "budget_memory": budget.memory,
                "virtual_s": seen.seconds,
                "bytes_up": offer.cost.bytes_up,
                "bytes_down": offer.cost.bytes_down,
                "energy_j": seen.energy,
                "energy_parts": joules_by_part(seen.phases[1], seen.phases[0] + seen.phases[2], budget),
                "flops": offer.cost.flops,
                "traffic": offer.cost.traffic,
                "ops": offer.cost.ops,
                "parts": offer.cost.parts,
                "phases": dict(zip(("download", "compute", "upload"), seen.phases, strict=True)),
                "worth": offer.worth,
                "measured": offer.cost.measured,
                "assumed": list(assumed),
            }


def still(rescue: Sequence[Offer], budget: Budget) -> str | None:
    """What a device that affords nothing on the menu could do all the same, the most useful first; None: unknown."""
    if not rescue:
        return None
    for offer in rescue:
        found = estimate(offer, budget)
        if not found.broken:
            details = ", ".join(f"{name}={value}" for name, value in offer.variant.items())
            name = f"{offer.method}({details})" if details else offer.method
            needs = format_bytes(offer.cost.memory_needed)
            return f"{name} would fit: {needs}, {format_seconds(found.seconds)} a round"
    least = min(offer.cost.memory_needed for offer in rescue)
    return f"not even inference fits: the leanest needs {format_bytes(least)}" if least > budget.memory else None
