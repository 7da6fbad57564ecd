"""The choice of a device: a pure function of what is offered and what the device has. No torch.

The order of preference is explicit. ``quality`` (until measured results are there): the variant whose gradients reach
more layers comes first, then the one that trains more numbers, then the one that stands higher on the menu, where a
method puts its richest variant first. ``time``, ``bytes`` and
``energy`` take the least of that, and the better quality among equals.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedge.core.cost import Budget, Cost, Shortfall
from fedge.emulation.link import Link, transfer_seconds
from fedge.emulation.power import energy
from fedge.emulation.roofline import Rates, compute_seconds
from fedge.units import format_bytes, format_seconds


@dataclass(frozen=True)
class Offer:
    """One variant on the menu: its place, its method's key, what it changes, and what a round of it costs."""

    index: int
    method: str
    variant: dict[str, Any]
    cost: Cost


@dataclass(frozen=True)
class Estimate:
    """One round of one offer on one device, before it is run: seconds, joules, and the limits that it breaks."""

    offer: Offer
    seconds: float
    energy: float
    broken: tuple[Shortfall, ...]


@dataclass(frozen=True)
class Choice:
    """What a device picked and why; ``index`` is None when nothing on the menu fits."""

    index: int | None
    reason: str
    runner_up: int | None = None
    refused: dict[int, str] = field(default_factory=dict)


def link_of(budget: Budget) -> Link:
    """The device's link out of its budget."""
    return Link(budget.down, budget.up, budget.latency, budget.jitter, budget.loss)


def rates_of(budget: Budget) -> Rates:
    """The device's compute rates out of its budget."""
    return Rates(budget.flops, budget.memory_bandwidth)


def estimate(offer: Offer, budget: Budget) -> Estimate:
    """Seconds and joules of one round: download, compute, upload, without jitter."""
    cost = offer.cost
    link = link_of(budget)
    radio = transfer_seconds(cost.bytes_down, link, "down") + transfer_seconds(cost.bytes_up, link, "up")
    compute = compute_seconds(cost.flops, cost.traffic, cost.ops, rates_of(budget))
    seconds = radio + compute
    return Estimate(offer, seconds, joules_of(compute, radio, budget), tuple(cost.fits(budget, seconds)))


def joules_of(compute: float, radio: float, budget: Budget) -> float:
    """Energy of so many seconds of computing and of sending or receiving.

    No profile has a figure for its radio yet, so the radio is taken to draw what computing draws: an upper bound.
    """
    beyond_idle = max(0.0, budget.active_power - budget.idle_power)
    return energy(compute, radio, 0.0, idle_w=budget.idle_power, active_w=budget.active_power, radio_w=beyond_idle)


def ranked(menu: Sequence[Offer], budget: Budget, prefer: str) -> list[Estimate]:
    """All offers with their estimates, most preferred first, whether they fit or not."""
    estimates = [estimate(offer, budget) for offer in menu]

    def quality(e: Estimate) -> tuple[float, ...]:
        cost = e.offer.cost
        return (-cost.depth, -cost.trainable, e.offer.index)

    orders = {
        "quality": quality,
        "time": lambda e: (e.seconds, *quality(e)),
        "bytes": lambda e: (e.offer.cost.bytes_up + e.offer.cost.bytes_down, *quality(e)),
        "energy": lambda e: (e.energy, *quality(e)),
    }
    return sorted(estimates, key=orders[prefer])


def choose(
    menu: Sequence[Offer],
    budget: Budget,
    *,
    prefer: str = "quality",
    banned: Collection[int] = (),
    freely: bool = True,
) -> Choice:
    """The most preferred offer that breaks no limit.

    ``banned``: offers that the device has already failed at. ``freely=False``: take the most preferred one that isn't
    banned whatever it breaks, and let the wall decide (``pick: richest``).
    """
    order = [e for e in ranked(menu, budget, prefer) if e.offer.index not in banned]
    refused = {e.offer.index: describe_shortfall(e.broken[0]) for e in order if e.broken}
    refused.update(dict.fromkeys(banned, "failed here before"))
    fitting = [e for e in order if not e.broken] if freely else order
    if not fitting:
        return Choice(None, _nothing(order, budget), refused=refused)
    best = fitting[0]
    above = [e for e in order[: order.index(best)] if e.broken]
    if not freely:
        reason = "the richest, whatever it needs (pick: richest)"
    elif not above:
        reason = f"the most preferred of {len(menu)} fits ({_needs(best)} of {format_bytes(budget.memory)})"
    else:
        reason = f"{_name(above[-1])} breaks {describe_shortfall(above[-1].broken[0])}; this one needs {_needs(best)}"
    return Choice(
        best.offer.index, reason, runner_up=fitting[1].offer.index if len(fitting) > 1 else None, refused=refused
    )


def describe_shortfall(shortfall: Shortfall) -> str:
    """A broken limit in words."""
    show = format_bytes if shortfall.limit == "memory" else format_seconds
    return f"{shortfall.limit}: needs {show(shortfall.need)}, has {show(shortfall.have)}"


def _nothing(order: Sequence[Estimate], budget: Budget) -> str:
    """Why nothing can be chosen, with the least that would do."""
    if not order:
        return "everything on the menu has failed here before"
    held = [e for e in order if e.offer.cost.memory_needed <= budget.memory]
    if held:  # so time is what it lacks
        quickest = min(e.seconds for e in held)
        return f"nothing that fits meets the deadline; the quickest needs {format_seconds(quickest)}"
    least = min(e.offer.cost.memory_needed for e in order)
    return f"nothing on the menu fits {format_bytes(budget.memory)}; the leanest needs {format_bytes(least)}"


def _needs(e: Estimate) -> str:
    return f"{format_bytes(e.offer.cost.memory_needed)}"


def _name(e: Estimate) -> str:
    details = ", ".join(f"{name}={value}" for name, value in e.offer.variant.items())
    return f"{e.offer.method}({details})"
