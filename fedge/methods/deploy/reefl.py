"""ReeFL: a recurrent exit module that all exits share, taught by whichever exit does best (Lee et al., ICML 2024).

The model is that of ``anytime``: one narrow transformer layer over the class tokens so far serves every exit and
changes the class token that goes on. Each exit also learns from the one whose training loss is lowest, by a moving
average that starts anew in every round on every device::

    m_l ← .8 m_l + .2 CE_l        teacher = argmin_l m_l        Σ_l [CE_l + c_r KL(sg p_teacher ‖ p_l)]

with DepthFL's ramp ``c_r = exp(−5 (1 − min(r, ramp) / ramp)²)``.
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
from fedge.methods.deploy.anytime import Anytime
from fedge.methods.exits import ExitsLoss, Lesson, ramp


@dataclass(frozen=True, kw_only=True)
class ReeFL(Anytime):
    """The shared exit module with the best exit as teacher."""

    ramp: int = field(default=300, metadata=doc("rounds after which the best exit teaches in full"))
    memory: float = field(default=0.8, metadata=doc("share of the past in the moving average of an exit's loss"))

    card: ClassVar[Card] = Card(
        name="ReeFL (recurrent early exits)",
        summary="one recurrent module is the exit of every block; the best exit teaches the others",
        paper="Lee et al. 2024, ICML",
        stages=("deploy",),
        path="deploy",
        leaves=("the change of the exit module and head, up to the device's depth", "number of rows"),
        deviations=(
            "the moving average starts at the first loss; the release starts it at 0, by which all look alike at first",
            "backbone frozen or, with backbone: true, trained; the release also puts LoRA and other adapters into it",
            "both branches of the module start at zero and the head at the model's own",
            "the mean is weighted by rows; a fixed number of local AdamW steps",
        ),
        tasks=("image-classification", "text-classification", "causal-lm", "masked-lm"),
        family="own",
        final="exits",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ramp < 1 or not 0 <= self.memory < 1:
            raise ValueError("ramp is a number of rounds from 1, and memory a share in [0, 1)")

    def loss_for(self, dev: Device) -> ExitsLoss:
        average: Tensor | None = None

        def loss(logits: Sequence[Tensor], batch: Batch) -> Tensor:
            nonlocal average
            losses = torch.stack([dev.task.loss_of(each, batch["labels"]) for each in logits])
            if len(logits) == 1:
                return losses.sum()
            seen = losses.detach()
            average = seen if average is None else self.memory * average + (1 - self.memory) * seen
            lesson = Lesson(dev.task, logits, batch)
            # chosen without reading a number; the teacher's own term is zero, and so is its gradient
            teacher = torch.stack(lesson.logs).index_select(0, average.argmin().reshape(1))[0]
            taught = torch.stack([lesson.divergence(teacher, student) for student in lesson.logs]).sum()
            return losses.sum() + ramp(dev.round, self.ramp) * taught

        return loss
