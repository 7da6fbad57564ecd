"""All exits trained together with the blocks below them (the common recipe of multi-exit models, federated).

A device of depth D trains its blocks and every exit l ≤ D with the loss of PABEE's release (arXiv 2006.04152), deeper
exits weighing more, and each earlier exit also follows what the device's last one says (self-distillation, Zhang et al.
2019, arXiv 1905.08094)::

    Σ_l l·CE_l / Σ_l l  +  distil · T² · mean_{l<D} KL(sg softmax(z_D / T) ‖ softmax(z_l / T))

A tensor is the mean over the devices that reach so deep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedge.core.fields import doc
from fedge.core.fit import Batch
from fedge.core.method import Card, Device
from fedge.methods.exits import Exits, Lesson


@dataclass(frozen=True, kw_only=True)
class Joint(Exits):
    """Blocks and exits together; ``distil`` weighs what earlier exits learn from the device's last one."""

    backbone: bool = field(default=True, metadata=doc("train the blocks up to the device's last exit too"))
    lr: float = field(default=1e-3, metadata=doc("learning rate on the device"))
    distil: float = field(default=0.5, metadata=doc("weight of what the last exit teaches the earlier ones"))
    temperature: float = field(default=3.0, metadata=doc("of that teaching"))

    card: ClassVar[Card] = Card(
        name="Joint exits",
        summary="blocks and exits trained together, each device as deep as it reaches; the last exit teaches",
        paper="Zhou et al. 2020, arXiv 2006.04152 (weights); Zhang et al. 2019, arXiv 1905.08094 (self-distillation)",
        stages=("deploy",),
        path="deploy",
        leaves=("the change of blocks and exits up to the device's depth", "number of rows"),
        deviations=("both papers train in one place; federated by coverage averaging over depth",),
        family="own",
        final="exits",
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distil < 0 or self.temperature <= 0:
            raise ValueError("distil is at least 0 and temperature above 0")

    def exits_loss(self, dev: Device, logits: Sequence[Tensor], batch: Batch) -> Tensor:
        weights = range(1, len(logits) + 1)
        losses = [
            weight * dev.task.loss_of(each, batch["labels"]) for weight, each in zip(weights, logits, strict=True)
        ]
        loss = torch.stack(losses).sum() / sum(weights)
        if len(logits) == 1 or not self.distil:
            return loss
        lesson = Lesson(dev.task, logits, batch, self.temperature)
        *students, teacher = lesson.logs
        taught = torch.stack([lesson.divergence(teacher, student) for student in students]).mean()
        return loss + self.distil * self.temperature**2 * taught
