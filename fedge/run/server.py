"""The server's side of a stage: what a method's ``init``, ``round``, ``update`` and ``final`` may touch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from fedge.core.method import Meter, Method, Rows
from fedge.core.rng import generator
from fedge.core.server import ServerOptimizer
from fedge.core.task import Task
from fedge.meter.spans import SpanMeter
from fedge.models.variant import assemble, duplicate
from fedge.run.brief import Brief


@dataclass
class StageServer:
    """Fulfils ``fedge.core.method.Server``; the coordinator keeps ``cohort``, ``variants`` and ``round`` current."""

    brief: Brief
    stage_base: nn.Module
    task: Task
    public: Rows | None
    cohort: tuple[str, ...] = ()
    variants: Mapping[str, Method] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()
    round: int = 0
    meter: Meter = field(default_factory=SpanMeter)
    optimizer: ServerOptimizer = field(init=False)
    rehearsed: bool = False

    def __post_init__(self) -> None:
        self.optimizer = self.brief.optimizer

    def base(self) -> nn.Module:
        return self.stage_base

    def copy(self) -> nn.Module:
        return duplicate(self.stage_base)

    def model(self, variant: Method | None = None) -> nn.Module:
        return assemble(variant or self.brief.method, self.stage_base, *self.brief.seeds).model

    def generator(self, purpose: str) -> torch.Generator:
        return generator(*self.brief.seeds, self.round, "server", purpose)
