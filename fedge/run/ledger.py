"""What each device has used and how it was lost: the figures of the closing table and of ``summary.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedge.core.cost import Budget, Cost
from fedge.core.rng import seed_for
from fedge.emulation.link import transfer_seconds
from fedge.emulation.roofline import compute_seconds
from fedge.plan.choose import joules_of, link_of, rates_of


@dataclass
class Account:
    """One device in one stage.

    free_at: when the device has done what it was last asked, in emulated seconds of the run. virtual_s, energy_j: time
    and energy of its own work. peak_memory in bytes, the frozen weights that it would hold included.
    """

    name: str
    budget: Budget
    rows: int
    availability: float = 1.0
    choice: int | None = None
    reason: str = ""
    runner_up: int | None = None
    banned: set[int] = field(default_factory=set)
    out: bool = False
    stateful: int | None = None
    restarts: int = 0
    free_at: float = 0.0
    virtual_s: float = 0.0
    energy_j: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    rounds: int = 0
    turns: int = 0
    peak_memory: int = 0
    lost: dict[str, Any] | None = None
    losses: int = 0

    def charge(self, start: float, cost: Cost, turns: int, down: int, up: int, *seed: str | int) -> float:
        """Account for one turn that began at ``start``; returns when its answer arrives.

        ``turns``: how many turns a round of this variant has, over which its traced work is spread evenly.
        """
        link = link_of(self.budget)
        radio = transfer_seconds(down, link, "down", _draw(*seed, self.name, "down"))
        radio += transfer_seconds(up, link, "up", _draw(*seed, self.name, "up"))
        rates = rates_of(self.budget)
        compute = compute_seconds(cost.flops, cost.traffic, cost.ops, rates) / turns
        if not self.turns:
            compute += compute_seconds(cost.once_flops, cost.once_traffic, 0, rates)
        self.turns += 1
        self.bytes_down += down
        self.bytes_up += up
        self.virtual_s += radio + compute
        self.energy_j += joules_of(compute, radio, self.budget)
        self.free_at = start + radio + compute
        return self.free_at

    def to_json(self) -> dict[str, Any]:
        """Everything but what the federation's file says, for a checkpoint."""
        plain = {k: v for k, v in vars(self).items() if k not in ("name", "budget", "rows", "availability")}
        return {**plain, "banned": sorted(self.banned)}

    def take(self, plain: dict[str, Any]) -> None:
        """Go on from what ``to_json`` gave."""
        for name, value in plain.items():
            setattr(self, name, set(value) if name == "banned" else value)


def _draw(*seed: str | int) -> float:
    """A number in [0, 1) that depends on its names alone."""
    return (seed_for(*seed) >> 10) / float(1 << 53)
