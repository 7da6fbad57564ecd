"""DepthFL: devices of several depths, whose exits teach each other (Kim et al., ICLR 2023).

A device of depth D trains its blocks and its E exits with ``Σ_i [CE_i + c_r / (E−1) · Σ_{j≠i} KL(sg p_j ‖ p_i)]``;
``c_r = exp(−5 (1 − min(r, ramp) / ramp)²)`` grows over the rounds. The prediction is the mean of the exits' logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedge.core.fields import doc
from fedge.core.fit import Batch
from fedge.core.method import Card, Device
from fedge.methods.exits import Exits, Lesson, ramp


@dataclass(frozen=True, kw_only=True)
class DepthFL(Exits):
    """Blocks and exits together, every exit a teacher of the others."""

    backbone: bool = field(default=True, metadata=doc("train the blocks up to the device's last exit too"))
    lr: float = field(default=1e-3, metadata=doc("learning rate on the device"))
    ramp: int = field(default=300, metadata=doc("rounds after which the exits teach each other in full"))

    card: ClassVar[Card] = Card(
        name="DepthFL",
        summary="blocks and exits trained together, each device as deep as it reaches; the exits teach each other",
        paper="Kim et al. 2023, ICLR",
        stages=("deploy",),
        path="deploy",
        leaves=("the change of blocks and exits up to the device's depth", "number of rows"),
        deviations=(
            "no FedDyn: plain local steps, and the mean over those who reach so deep",
            "the mean is weighted by rows; the release counts devices",
            "an exit is a norm and a linear layer, without the paper's bottleneck",
        ),
        family="own",
        final="exits",
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ramp < 1:
            raise ValueError(f"ramp is a number of rounds from 1, not {self.ramp}")

    def teaching(self, round: int) -> float:
        """c_r: .0067 in the first round of 300, 1 at the ramp's end."""
        return ramp(round, self.ramp)

    def exits_loss(self, dev: Device, logits: Sequence[Tensor], batch: Batch) -> Tensor:
        loss = super().exits_loss(dev, logits, batch)
        if len(logits) == 1:
            return loss
        lesson = Lesson(dev.task, logits, batch)
        taught = [
            lesson.divergence(teacher, student)
            for i, student in enumerate(lesson.logs)
            for j, teacher in enumerate(lesson.logs)
            if i != j
        ]
        return loss + self.teaching(dev.round) / (len(logits) - 1) * torch.stack(taught).sum()

    def predict(self, model: nn.Module, inputs: Batch) -> Tensor:
        found: list[Tensor] = model(**inputs)
        return torch.stack(found).mean(0)
