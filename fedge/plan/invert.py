"""The other way round: the least of a device with which a method still makes its deadline. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fedge.core.cost import Budget
from fedge.plan.choose import Offer, estimate, link_of, rates_of


def least_link(offer: Offer, budget: Budget) -> float | None:
    """By how much both rates of the link may be multiplied so that a round just makes its deadline.

    None where computing and latency alone take longer. 0 where there is no deadline, or nothing to send.
    """
    if budget.deadline is None:
        return 0.0
    whole = estimate(offer, budget).seconds
    rest = estimate(offer, scaled(budget, link=1e12)).seconds
    return (whole - rest) / (budget.deadline - rest) if budget.deadline > rest else None


def least_compute(offer: Offer, budget: Budget) -> float | None:
    """By how much the processor's and the memory's rates may be multiplied; None where the link alone takes longer."""
    if budget.deadline is None:
        return 0.0
    whole = estimate(offer, budget).seconds
    rest = estimate(offer, scaled(budget, compute=1e12)).seconds
    return (whole - rest) / (budget.deadline - rest) if budget.deadline > rest else None


def scaled(budget: Budget, *, link: float = 1.0, compute: float = 1.0) -> Budget:
    """The budget with other rates."""
    return replace(
        budget,
        down=budget.down * link,
        up=budget.up * link,
        flops=budget.flops * compute,
        memory_bandwidth=budget.memory_bandwidth * compute,
        per_op=budget.per_op / compute,
    )


def rows(stage: str, menu: Sequence[Offer], budgets: Iterable[tuple[str, Budget]]) -> Iterator[dict[str, Any]]:
    """A flat record for each device and method: the least memory, link and compute, each with the variant that it
    takes; the other two as the device has them. None: no amount would do; link and compute are None without a deadline.
    """
    for device, budget in budgets:
        for method in dict.fromkeys(offer.method for offer in menu):
            offers = [offer for offer in menu if offer.method == method]
            timely = [o for o in offers if budget.deadline is None or estimate(o, budget).seconds <= budget.deadline]
            held = [o for o in offers if o.cost.memory_needed <= budget.memory]
            lean = min(timely, key=lambda o: o.cost.memory_needed, default=None)
            row: dict[str, Any] = {"device": device, "stage": stage, "method": method, "deadline": budget.deadline}
            row |= {
                "memory": lean.cost.memory_needed if lean else None,
                "memory_variant": lean.variant if lean else None,
            }
            link = _least([(least_link(o, budget), o) for o in held]) if budget.deadline is not None else None
            rates = link_of(budget)
            row["down"], row["up"] = (link[0] * rates.down, link[0] * rates.up) if link else (None, None)
            row["link_variant"] = link[1].variant if link else None
            compute = _least([(least_compute(o, budget), o) for o in held]) if budget.deadline is not None else None
            have = rates_of(budget)
            row["compute"], row["memory_bandwidth"] = (
                (compute[0] * have.flops, compute[0] * have.memory_bandwidth) if compute else (None, None)
            )
            row["compute_variant"] = compute[1].variant if compute else None
            row["held"] = bool(held)
            yield row


def _least(found: Sequence[tuple[float | None, Offer]]) -> tuple[float, Offer] | None:
    real = [(factor, offer) for factor, offer in found if factor is not None]
    return min(real, key=lambda pair: pair[0]) if real else None
