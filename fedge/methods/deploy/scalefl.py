"""ScaleFL: devices hold less depth and less width at once (Ilhan, Su & Liu, CVPR 2023).

A device of level i holds the blocks up to exit i and of each the leading ``widths[i]``: that share of the attention
heads, with the hidden state and the feed-forward layers narrower alike. With E exits it trains::

    [Σ_{j<E} j (CE_j + γ T² KL(sg p_E^T ‖ p_j^T)) + E · CE_E] / (E (E + 1) / 2)

the KL only after ``warmup`` rounds. Each number of a tensor is the mean over the devices that hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedge.core.fields import doc
from fedge.core.fit import Batch
from fedge.core.method import Card, Device, Server, State
from fedge.core.payload import Payload
from fedge.methods.exits import Exits, Lesson
from fedge.models.exits import MultiExit
from fedge.models.names import trainable
from fedge.models.narrow import leading, narrowed


@dataclass(frozen=True, kw_only=True)
class ScaleFL(Exits):
    """Depth and width by level; at full depth a device has full width."""

    backbone: bool = field(default=True, metadata=doc("train the blocks up to the device's last exit too"))
    lr: float = field(default=1e-3, metadata=doc("learning rate on the device"))
    widths: tuple[float, ...] = field(default=(0.5, 0.75, 1.0), metadata=doc("share of the width for each of 'exits'"))
    distil: float = field(default=0.05, metadata=doc("γ: weight of what the last exit teaches the earlier ones"))
    temperature: float = field(default=3.0, metadata=doc("of that teaching"))
    warmup: int = field(default=5, metadata=doc("rounds before the last exit teaches; the paper: a quarter of all"))

    card: ClassVar[Card] = Card(
        name="ScaleFL",
        summary="weak devices hold fewer blocks and narrower ones; the last exit teaches the earlier",
        paper="Ilhan, Su & Liu 2023, CVPR",
        stages=("deploy",),
        path="deploy",
        leaves=("the change of the device's part of blocks and exits", "number of rows"),
        deviations=(
            "what the last exit teaches does not flow back into it; the release does not detach it",
            "means are weighted by rows; the paper counts devices",
            "embeddings are narrowed too, but not trained",
            "the stage leaves exits of full width; a weak device's narrow part is not exported by itself",
        ),
        tasks=("image-classification", "text-classification"),
        alternatives=("joint", "depthfl", "anytime"),
        family="own",
        final="exits",
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.widths) != len(self.exits):
            raise ValueError(f"{len(self.exits)} exits need as many widths, not {len(self.widths)}")
        if not all(0 < width <= 1 for width in self.widths) or list(self.widths) != sorted(self.widths):
            raise ValueError(f"widths are rising shares in (0, 1], not {list(self.widths)}")
        if self.distil < 0 or self.temperature <= 0 or self.warmup < 0:
            raise ValueError("distil and warmup are at least 0, and temperature above 0")

    def shortened(self, model: MultiExit) -> MultiExit:
        short = super().shortened(model)
        # a device of full depth is the whole model's
        width = 1.0 if short.points[-1] == model.points[-1] else self.widths[self.exits.index(short.points[-1])]
        return short if width == 1 else narrowed(short, width)

    def init(self, srv: Server) -> State:
        shapes = {}
        for depth in self.exits:
            held = trainable(srv.model(self.leaving_at(depth)))
            shapes[str(depth)] = {name: list(parameter.shape) for name, parameter in held.items()}
        return {**super().init(srv), "shapes": shapes}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        depth = self.depth_of(srv, device)
        if depth is None:
            return super().down(srv, state, device)
        shapes = state["shapes"][str(depth)]
        names = [name for name in state["changed"] if name in shapes]
        return Payload({"weights": {name: leading(state["weights"][name], shapes[name]) for name in names}})

    def exits_loss(self, dev: Device, logits: Sequence[Tensor], batch: Batch) -> Tensor:
        losses = [dev.task.loss_of(each, batch["labels"]) for each in logits]
        if dev.round >= self.warmup and self.distil and len(logits) > 1:
            lesson = Lesson(dev.task, logits, batch, self.temperature)
            *students, teacher = lesson.logs
            for at, student in enumerate(students):
                losses[at] = losses[at] + self.distil * self.temperature**2 * lesson.divergence(teacher, student)
        weights = range(1, len(logits) + 1)
        return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)
