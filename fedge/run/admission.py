"""Whether this host can carry a federation in real time, and by how much all of it has to be slowed down if it can't.

A device that computes for ``c`` seconds of its own clock what takes this host ``h`` seconds of one core needs the share
``h / c`` of a core. Its cap is more than that by ``ROOM``, because training under a quota was measured to lose 17 to
42 % beyond its share; what it computes too fast it waits off. The caps of all devices that a round asks together may
be ``CORES`` of the host's cores, and none more than one core, for a device's process has one thread that computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedge.core.cost import Budget, Cost
from fedge.emulation.roofline import Rates, compute_seconds
from fedge.errors import LimitError
from fedge.plan.choose import rates_of
from fedge.run.budgets import budget_of
from fedge.run.plans import StagePlan, choices
from fedge.spec.federation import FederationSpec

#: The share of the host's cores that caps may add up to, and how much a cap is above the need.
CORES, ROOM = 0.85, 1.3
#: By what share a factor may be too small before it is raised, and too large before it is lowered.
_SHORT, _AMPLE = 0.05, 0.3


@dataclass(frozen=True)
class Stage:
    """What a stage asks of the host at once: its name, each device's need of a core, and how many a round asks."""

    name: str
    needs: Mapping[str, float]
    asked: int

    @property
    def cores(self) -> float:
        """Cores that the caps of the neediest cohort add up to."""
        return ROOM * sum(sorted(self.needs.values(), reverse=True)[: self.asked])

    @property
    def neediest(self) -> str:
        """The device that needs most of a core."""
        return max(self.needs, key=lambda name: (self.needs[name], name))


@dataclass(frozen=True)
class Admission:
    """What was found: how many seconds of the wall clock stand for one of the devices', and the cores needed then."""

    slow: float
    cores: float
    granted: float


def need(cost: Cost, budget: Budget, host: Rates) -> float:
    """The share of a core of this host with which it computes as fast as the device does; may be above 1."""
    here = compute_seconds(cost.flops, cost.traffic, cost.ops, host, cost.kinds)
    there = compute_seconds(cost.flops, cost.traffic, cost.ops, rates_of(budget), cost.kinds)
    return here / there if there > 0 else 0.0


def demands(spec: FederationSpec, plans: Sequence[StagePlan], host: Rates) -> list[Stage]:
    """What each stage would ask of the host, as its devices pick now."""
    found = []
    for plan in plans:
        stage = spec.stages[plan.index]
        needs = {}
        picked = choices(spec, plan)
        for device in spec.devices:
            index = picked[device.name].index
            if index is not None:
                needs[device.name] = need(plan.menu[index].cost, budget_of(device, stage.deadline, stage.rounds), host)
        found.append(Stage(plan.stage, needs, stage.most_asked(len(spec.devices))))
    return found


def revised(stage: Stage, cores: int, slow: float) -> float:
    """The factor for needs that were measured: another one where ``slow`` is too little, or far more than enough."""
    if not stage.needs:
        return slow
    least = max(1.0, stage.cores / (CORES * cores), ROOM * stage.needs[stage.neediest])
    return least if least > slow * (1 + _SHORT) or least < slow * (1 - _AMPLE) else slow


def admit(stages: Sequence[Stage], cores: int, slowdown: float | str) -> Admission:
    """Hold the federation against the host; ``slowdown``: what the file says, 'auto' takes the least that will do.

    Raises LimitError, which names the stage, the device and what would do.
    """
    granted = CORES * cores
    least, why = 1.0, ""
    for stage in stages:
        if not stage.needs:
            continue
        together, single = stage.cores / granted, ROOM * stage.needs[stage.neediest]
        if together > max(least, single):
            least = together
            why = (
                f"stage {stage.name} asks {min(stage.asked, len(stage.needs))} devices at once, whose caps add up to "
                f"{stage.cores:.2f} cores; this host grants {granted:.2f} ({CORES:.0%} of {cores})"
            )
        elif single > least:
            least = single
            why = f"stage {stage.name}: {stage.neediest} needs {single:.2f} cores, and its process can use one"
    slow = least if slowdown == "auto" else float(slowdown)
    if slow < least * (1 - 1e-9):
        raise LimitError(
            f"the real clock can't keep up: {why}",
            hint=f"emulation.slowdown: auto (or {_up(least)} and more) slows all devices alike; clock: virtual "
            "needs no such room",
        )
    return Admission(slow, max((stage.cores for stage in stages), default=0.0) / slow, granted)


def _up(factor: float) -> str:
    """A factor rounded up to a tenth, so that what is typed does."""
    return f"{-(-factor * 10 // 1) / 10:g}"
