"""What each device has used and how it was lost: the figures of the closing table and of ``summary.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedge.core.cost import Budget, Cost
from fedge.core.rng import seed_for
from fedge.emulation.link import Link, transfer_seconds
from fedge.emulation.pace import Timing
from fedge.emulation.presence import Presence
from fedge.emulation.roofline import compute_seconds
from fedge.plan.choose import joules_by_part, joules_of, link_of, rates_of

#: What the federation's file says of a device.
_FIXED = ("name", "budget", "rows", "availability", "link", "presence")


@dataclass
class Account:
    """One device in one stage.

    link: its link where it is more than the budget says. presence: when it is there, beyond a share of rounds.
    free_at: when the device has done what it was last asked, in emulated seconds of the run. virtual_s, energy_j,
    energy_parts: time and energy of its own work, the latter also by what it went to. peak_memory in bytes, the
    frozen weights that it would hold included. last_round, took, met_loss: the round in which it last answered, the
    seconds that this took it, and the mean loss that it told. behind_s: under a real clock, by how many seconds of
    the wall clock it was later than the virtual one says, over all turns. overdue: rounds in a row, up to now, in
    which it answered too late. faults: how often each kind struck it, by how that ended.
    """

    name: str
    budget: Budget
    rows: int
    availability: float = 1.0
    link: Link | None = None
    presence: Presence = field(default_factory=Presence)
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
    energy_parts: dict[str, float] = field(default_factory=lambda: {"idle": 0.0, "compute": 0.0, "radio": 0.0})
    bytes_up: int = 0
    bytes_down: int = 0
    rounds: int = 0
    turns: int = 0
    peak_memory: int = 0
    lost: dict[str, Any] | None = None
    losses: int = 0
    last_round: int = 0
    took: float = 0.0
    met_loss: float | None = None
    behind_s: float = 0.0
    overdue: int = 0
    faults: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def way(self) -> Link:
        """The device's link, changing or not."""
        return self.link or link_of(self.budget)

    def timing(
        self, now: float, start: float, cost: Cost, turns: int, down: int, *seed: str | int, end: float = math.inf
    ) -> Timing:
        """What is known of a turn before its answer is there; see ``charge`` and ``Timing`` for what is given."""
        rates = rates_of(self.budget)
        compute = compute_seconds(cost.flops, cost.traffic, cost.ops, rates, cost.kinds) / turns
        if not self.turns:
            compute += compute_seconds(cost.once_flops, cost.once_traffic, 0, rates, cost.kinds)
        return Timing(now, start, down, compute, _draw(*seed, self.name, "down"), _draw(*seed, self.name, "up"), end)

    def charge(
        self,
        start: float,
        cost: Cost,
        turns: int,
        down: int,
        up: int,
        *seed: str | int,
        slowed: float = 1.0,
        away: float = 0.0,
    ) -> float:
        """Account for one turn that began at ``start``; returns when its answer arrives.

        That is infinite when the device goes away on the way: then it is charged for what it did until then.

        ``turns``: how many turns a round of this variant has, over which its traced work is spread evenly. slowed,
        away: how many times longer the work takes, and seconds for which the answer is held back.
        """
        at = self.timing(start, start, cost, turns, down, *seed)
        link, compute = self.way, at.compute * slowed
        download = transfer_seconds(down, link, "down", at.down_draw, start)
        upload = transfer_seconds(up, link, "up", at.up_draw, start + download + compute)
        arrival = start + download + compute + upload + away
        drawn = (_draw(*seed, self.name, "drops"), _draw(*seed, self.name, "where"))
        gone = self.presence.drop(start, arrival, drawn)
        if gone < arrival:
            left = gone - start
            parts = (down, download), (0, compute), (up, upload)
            (down, download), (_, compute), (up, upload) = _cut(parts, left)
        radio = download + upload
        self.turns += 1
        self.bytes_down += down
        self.bytes_up += up
        self.virtual_s += radio + compute
        self.energy_j += joules_of(compute, radio, self.budget)
        more = joules_by_part(compute, radio, self.budget)
        self.energy_parts = {part: joules + more[part] for part, joules in self.energy_parts.items()}
        self.free_at = min(arrival, gone)
        return arrival if gone >= arrival else math.inf

    def to_json(self) -> dict[str, Any]:
        """Everything but what the federation's file says, for a checkpoint."""
        plain = {k: v for k, v in vars(self).items() if k not in _FIXED}
        return {**plain, "banned": sorted(self.banned)}

    def take(self, plain: dict[str, Any]) -> None:
        """Go on from what ``to_json`` gave."""
        for name, value in plain.items():
            setattr(self, name, set(value) if name == "banned" else value)


def _cut(parts: Sequence[tuple[int, float]], left: float) -> list[tuple[int, float]]:
    """Bytes and seconds of what comes one after another, as far as ``left`` seconds go."""
    found = []
    for size, seconds in parts:
        spent = min(seconds, max(0.0, left))
        found.append((round(size * spent / seconds) if seconds > 0 else size, spent))
        left -= spent
    return found


def _draw(*seed: str | int) -> float:
    """A number in [0, 1) that depends on its names alone."""
    return (seed_for(*seed) >> 10) / float(1 << 53)
