"""What all sides of a stage know: the method, the menu with its costs, and the numbers of the stage."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from fedge.codecs import make as codecs
from fedge.codecs.chain import Chain
from fedge.core.cost import Cost
from fedge.core.method import Ask, Method
from fedge.core.rng import seed_for
from fedge.core.server import ServerOptimizer
from fedge.emulation.link import Link
from fedge.emulation.presence import Churn, Cycle, Pattern, Presence, Stay, Steps
from fedge.emulation.rate import Rate
from fedge.methods.make import describe, revive
from fedge.plan.choose import Offer, Prefer
from fedge.privacy.budget import Budgeted
from fedge.spec.device import DeviceSpec


@dataclass(frozen=True)
class Brief:
    """A stage as its processes are told it. ``menu[i]`` says what ``variants[i]`` costs.

    freely: devices choose; otherwise they take the richest that has not failed on them. deadline: seconds of emulated
    time a round, or None. sampling: how the cohort is drawn (``run.cohort``). over: how many times the cohort is asked,
    of whose answers the first count. late: 'drop', or 'carry' late answers over into a later round. quorum: share (a
    float) or count (an int) of the asked that must answer. chain: the codecs that a device's answers go through. trust:
    what the stage's privacy is, None where it has none.
    """

    seed: int
    index: int
    stage: str
    key: str
    method: Method
    variants: tuple[Method, ...]
    menu: tuple[Offer, ...]
    rounds: int
    prefer: Prefer = "quality"
    freely: bool = True
    cohort: int | None = None
    sampling: str = "uniform"
    over: float = 1.0
    late: str = "drop"
    quorum: float = 0
    deadline: float | None = None
    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    chain: Chain = field(default_factory=Chain)
    trust: Budgeted | None = None

    @property
    def seeds(self) -> tuple[str | int, ...]:
        """What every random stream of this stage begins with."""
        return (self.seed, "stage", self.index)

    @property
    def asked(self) -> int | None:
        """How many devices a round asks; None: all."""
        return None if self.cohort is None else math.ceil(self.cohort * self.over - 1e-9)

    def policy(self, ask: Ask) -> Ask:
        """A method's question under the stage's rules: the first answers where more were asked, late ones kept."""
        want = ask.want
        if self.cohort is not None and self.over > 1 and len(ask.to) > self.cohort:
            want = self.cohort if want is None else min(want, self.cohort)
        return replace(ask, want=want, keep=ask.keep or self.late == "carry")

    def needed(self, asked: int) -> int:
        """How many of ``asked`` devices must answer for a turn to count; at least one."""
        # a whole number counts devices, anything else is a share; 80 % of 5 is 4, though 0.8 * 5 may be a hair above
        share = isinstance(self.quorum, float)
        return max(1, math.ceil(self.quorum * asked - 1e-9) if share else min(int(self.quorum), asked))

    def to_json(self) -> dict[str, Any]:
        """The brief as JSON, for another process."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain["method"] = describe(self.method)
        plain["variants"] = [describe(variant) for variant in self.variants]
        plain["menu"] = [asdict(offer) for offer in self.menu]
        plain["optimizer"] = asdict(self.optimizer)
        plain["chain"] = codecs.describe(self.chain)
        plain["trust"] = None if self.trust is None else asdict(self.trust)
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Brief:
        """The brief that ``to_json`` gave."""
        return cls(
            **{
                **plain,
                "method": revive(plain["method"]),
                "variants": tuple(revive(variant) for variant in plain["variants"]),
                "menu": tuple(_offer(offer) for offer in plain["menu"]),
                "optimizer": ServerOptimizer(**plain["optimizer"]),
                "chain": codecs.revive(plain["chain"]),
                "trust": None if plain["trust"] is None else Budgeted.from_json(plain["trust"]),
            }
        )


def _offer(plain: dict[str, Any]) -> Offer:
    return Offer(**{**plain, "cost": Cost(**plain["cost"])})


def changing_link(device: DeviceSpec) -> Link | None:
    """A device's link whose rates follow a trace; None for one whose budget says all."""
    return None if device.link.trace is None else link_of_spec(device)


def link_of_spec(device: DeviceSpec) -> Link:
    """A device's link as the file has it."""
    spec, trace = device.link, device.link.trace
    if trace is None:
        return Link(spec.down, spec.up, spec.latency, spec.jitter, spec.loss)
    rates = (Rate(trace.seconds, trace.down, trace.length), Rate(trace.seconds, trace.up, trace.length))
    return Link(spec.down, spec.up, spec.latency, spec.jitter, spec.loss, rates)


def presence_of(device: DeviceSpec, seed: int) -> Presence:
    """When a device is there, over the emulated time of a whole run."""
    told = device.presence
    patterns: list[Pattern] = []

    def draw(purpose: str, number: int) -> float:
        return (seed_for(seed, "presence", device.name, purpose, number) >> 10) / float(1 << 53)

    if told.joins or told.leaves is not None:
        patterns.append(Stay(told.joins, math.inf if told.leaves is None else told.leaves))
    if told.cycle is not None:
        on, off, start = told.cycle
        patterns.append(Cycle(on, off, -draw("cycle", 0) * (on + off) if start is None else start))
    if told.churn is not None:
        patterns.append(Churn(*told.churn, partial(draw, "churn")))
    if told.trace is not None:
        patterns.append(Steps(*told.trace))
    return Presence(tuple(patterns), told.drops)
