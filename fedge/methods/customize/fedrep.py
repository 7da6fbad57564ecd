"""FedRep: in each round the own head first, then the common body (Collins et al. 2021, arXiv 2102.07078)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from fedge.core.method import Card, Device
from fedge.core.payload import Tree
from fedge.methods.customize.fedper import FedPer, heads
from fedge.methods.tuning import doc
from fedge.models.names import trainable


@dataclass(frozen=True, kw_only=True)
class FedRep(FedPer):
    """``head_steps`` on the head under a frozen body, then ``steps`` on the body under that head."""

    head_steps: int = field(default=8, metadata=doc("steps a round on the head, before those on the body"))

    card: ClassVar[Card] = replace(
        FedPer.card,
        name="FedRep",
        summary="the body is averaged; each device first fits a head of its own, then the body under it",
        paper="Collins et al. 2021, arXiv 2102.07078",
        alternatives=("fedper", "ditto"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_steps <= 0:
            raise ValueError(f"head_steps must be above 0, not {self.head_steps}")

    def local(self, dev: Device, start: Tree) -> None:
        own = heads(dev.model)
        parameters = trainable(dev.model)
        for steps, mine in ((self.head_steps, True), (self.steps, False)):
            for name, parameter in parameters.items():
                parameter.requires_grad_(name.startswith(own) == mine)
            self.train(dev, dev.task.loss, start, steps=steps)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
