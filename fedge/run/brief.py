"""What all sides of a stage know: the method, the menu with its costs, and the numbers of the stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedge.codecs import make as codecs
from fedge.codecs.chain import Chain
from fedge.core.cost import Budget, Cost
from fedge.core.method import Method
from fedge.core.server import ServerOptimizer
from fedge.methods.make import describe, revive
from fedge.plan.choose import Offer
from fedge.spec.device import DeviceSpec


@dataclass(frozen=True)
class Brief:
    """A stage as its processes are told it. ``menu[i]`` says what ``variants[i]`` costs.

    freely: devices choose; otherwise they take the richest that has not failed on them. deadline: seconds of emulated
    time a round, or None. quorum: share (a float) or count (an int) of the asked that must answer. chain: the codecs
    that a device's answers go through.
    """

    seed: int
    index: int
    stage: str
    key: str
    method: Method
    variants: tuple[Method, ...]
    menu: tuple[Offer, ...]
    rounds: int
    prefer: str = "quality"
    freely: bool = True
    cohort: int | None = None
    quorum: float = 0
    deadline: float | None = None
    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    chain: Chain = field(default_factory=Chain)

    @property
    def seeds(self) -> tuple[str | int, ...]:
        """What every random stream of this stage begins with."""
        return (self.seed, "stage", self.index)

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
            }
        )


def _offer(plain: dict[str, Any]) -> Offer:
    return Offer(**{**plain, "cost": Cost(**plain["cost"])})


def budget_of(device: DeviceSpec, deadline: float | None) -> Budget:
    """What a device of the file grants, for one stage's deadline."""
    link = device.link
    return Budget(
        memory=device.memory,
        flops=device.flops,
        memory_bandwidth=device.memory_bandwidth,
        down=link.down,
        up=link.up,
        latency=link.latency,
        jitter=link.jitter,
        loss=link.loss,
        idle_power=device.idle_power,
        active_power=device.active_power,
        deadline=deadline,
    )


def names_of(devices: Sequence[DeviceSpec]) -> list[str]:
    """Device names in the order in which replies are folded."""
    return sorted(device.name for device in devices)
