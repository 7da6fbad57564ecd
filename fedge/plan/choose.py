"""The choice of a device: a pure function of what is offered and what the device has. No torch.

The order of preference is explicit:

- ``quality``: what a variant was measured to be worth, where ``fedge compare --learn`` has measured the task, the
  cheaper one first among those worth the same. Until then a prior: the variant whose gradients reach more layers comes
  first, then the one that trains more numbers, then the one that stands higher on the menu: whole texts, then all
  steps, then frozen matrices in fp32 (``methods.tuning.scaled``), then as the method has it, its richest first. The
  survey's stars rate effort, traffic and compute, and are not used.
- ``time``, ``bytes``, ``energy``: the least of that, and the better quality among equals.
- weights, such as ``{quality: 1, bytes: 0.5}``: the least weighted sum of how far a variant stands from the best on
  the menu, 0 to 1 each: places for quality, ratios (on a logarithmic scale) for what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedge.core.cost import Budget, Cost, Shortfall
from fedge.emulation import power
from fedge.emulation.link import Link, transfer_seconds
from fedge.emulation.roofline import Rates, compute_seconds
from fedge.units import format_bytes, format_joules, format_seconds

#: What a device can look for.
GOALS = ("quality", "time", "bytes", "energy")
#: One of ``GOALS``, or a weight for each of several.
Prefer = str | Mapping[str, float]


@dataclass(frozen=True)
class Offer:
    """One variant on the menu: its place, its method's key, what it changes, and what a round of it costs.

    worth: how good the model was that it alone made, as measured (more is better); None where nobody has. tier: its
    place among the measured, 0 for the best; what is worth the same shares one.
    """

    index: int
    method: str
    variant: dict[str, Any]
    cost: Cost
    worth: float | None = None
    tier: int | None = None


@dataclass(frozen=True)
class Estimate:
    """One round of one offer on one device, before it is run: seconds, joules, and the limits that it breaks.

    phases: the seconds of download, compute and upload.
    """

    offer: Offer
    seconds: float
    energy: float
    broken: tuple[Shortfall, ...]
    phases: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Choice:
    """What a device picked and why; ``index`` is None when nothing on the menu fits, ``limit`` what it lacks then."""

    index: int | None
    reason: str
    runner_up: int | None = None
    refused: dict[int, str] = field(default_factory=dict)
    limit: str | None = None


def link_of(budget: Budget) -> Link:
    """The device's link out of its budget."""
    return Link(budget.down, budget.up, budget.latency, budget.jitter, budget.loss)


def rates_of(budget: Budget) -> Rates:
    """The device's compute rates out of its budget."""
    return Rates(budget.flops, budget.memory_bandwidth, budget.per_op, budget.slower)


def estimate(offer: Offer, budget: Budget) -> Estimate:
    """Seconds and joules of one round: download, compute, upload, without jitter."""
    cost = offer.cost
    link = link_of(budget)
    down, up = transfer_seconds(cost.bytes_down, link, "down"), transfer_seconds(cost.bytes_up, link, "up")
    radio = down + up
    compute = compute_seconds(cost.flops, cost.traffic, cost.ops, rates_of(budget), cost.kinds)
    seconds, joules = radio + compute, joules_of(compute, radio, budget)
    return Estimate(offer, seconds, joules, tuple(cost.fits(budget, seconds, joules)), (down, compute, up))


def joules_of(compute: float, radio: float, budget: Budget) -> float:
    """Energy of so many seconds of computing and of sending or receiving.

    Where nothing is said of its radio, that is taken to draw what computing draws: an upper bound.
    """
    return power.energy(compute, radio, 0.0, **_watts(budget))


def joules_by_part(compute: float, radio: float, budget: Budget) -> dict[str, float]:
    """The same joules by ``idle``, ``compute`` and ``radio``."""
    return power.parts(compute, radio, 0.0, **_watts(budget))


def _watts(budget: Budget) -> dict[str, float]:
    beyond_idle = max(0.0, budget.active_power - budget.idle_power)
    radio = beyond_idle if budget.radio_power is None else budget.radio_power
    return {"idle_w": budget.idle_power, "active_w": budget.active_power, "radio_w": radio}


def quality(offer: Offer) -> tuple[float, ...]:
    """By which offers are sorted for quality, the best first; the same on every device."""
    cost = offer.cost
    prior = (-cost.depth, -cost.trainable, offer.index)
    if offer.tier is None:
        return (math.inf, 0.0, *prior)
    return (offer.tier, cost.flops + cost.traffic + cost.bytes_up + cost.bytes_down, *prior)


def ranked(menu: Sequence[Offer], budget: Budget, prefer: Prefer) -> list[Estimate]:
    """All offers with their estimates, most preferred first, whether they fit or not."""
    estimates = [estimate(offer, budget) for offer in menu]
    counted: dict[str, Callable[[Estimate], float]] = {
        "time": lambda e: e.seconds,
        "bytes": lambda e: e.offer.cost.bytes_up + e.offer.cost.bytes_down,
        "energy": lambda e: e.energy,
    }
    if prefer == "quality":
        return sorted(estimates, key=lambda e: quality(e.offer))
    if isinstance(prefer, str):
        return sorted(estimates, key=lambda e: (counted[prefer](e), *quality(e.offer)))
    scores = dict.fromkeys(range(len(estimates)), 0.0)
    places = sorted(range(len(estimates)), key=lambda i: quality(menu[i]))
    for goal, weight in prefer.items():
        values = [
            float(places.index(i)) if goal == "quality" else _log(counted[goal](e)) for i, e in enumerate(estimates)
        ]
        least, most = min(values, default=0.0), max(values, default=0.0)
        for i, value in enumerate(values):
            scores[i] += weight * (value - least) / ((most - least) or 1.0)
    order = sorted(scores, key=lambda i: (scores[i], *quality(menu[i])))
    return [estimates[i] for i in order]


def _log(value: float) -> float:
    return math.log(max(value, 1e-12))


def choose(
    menu: Sequence[Offer],
    budget: Budget,
    *,
    prefer: Prefer = "quality",
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
        reason, limit = _nothing(order, budget)
        return Choice(None, reason, refused=refused, limit=limit)
    best = fitting[0]
    above = [e for e in order[: order.index(best)] if e.broken]
    if not freely:
        reason = "the richest, whatever it needs (pick: richest)"
    elif best.offer.tier == 0 and len([o for o in menu if o.tier == 0]) > 1:
        reason = f"measured: worth as much as the best here, {best.offer.worth:.4g}, and the least of those to pay for"
    elif not above:
        reason = f"the most preferred of {len(menu)} fits ({_needs(best)} of {format_bytes(budget.memory)})"
    else:
        reason = f"{_name(above[-1])} breaks {describe_shortfall(above[-1].broken[0])}; this one needs {_needs(best)}"
    return Choice(
        best.offer.index, reason, runner_up=fitting[1].offer.index if len(fitting) > 1 else None, refused=refused
    )


def describe_shortfall(shortfall: Shortfall) -> str:
    """A broken limit in words."""
    shown = {"memory": format_bytes, "data": format_bytes, "deadline": format_seconds}
    show = shown.get(shortfall.limit, format_joules)
    return f"{shortfall.limit}: needs {show(shortfall.need)}, has {show(shortfall.have)}"


def _nothing(order: Sequence[Estimate], budget: Budget) -> tuple[str, str]:
    """Why nothing can be chosen, with the least that would do; and which limit that is."""
    if not order:
        return "everything on the menu has failed here before", "memory"
    held = [e for e in order if e.offer.cost.memory_needed <= budget.memory]
    timely = [e for e in held if budget.deadline is None or e.seconds <= budget.deadline]
    if timely:  # so it is data, energy or battery that it lacks
        nearest = min(timely, key=lambda e: e.broken[0].need / max(e.broken[0].have, 1e-12)).broken[0]
        return f"nothing that fits and is in time keeps to {describe_shortfall(nearest)}", nearest.limit
    if held:  # so time is what it lacks
        quickest = min(e.seconds for e in held)
        return f"nothing that fits meets the deadline; the quickest needs {format_seconds(quickest)}", "deadline"
    least = min(e.offer.cost.memory_needed for e in order)
    return f"nothing on the menu fits {format_bytes(budget.memory)}; the leanest needs {format_bytes(least)}", "memory"


def _needs(e: Estimate) -> str:
    return f"{format_bytes(e.offer.cost.memory_needed)}"


def _name(e: Estimate) -> str:
    details = ", ".join(f"{name}={value}" for name, value in e.offer.variant.items())
    return f"{e.offer.method}({details})"
