"""MOON: local training held near the global model's representations (Li et al. 2021, arXiv 2103.16257).

With z the projection of a row by the model that is trained, ``z_glob`` by the one that was received and ``z_prev`` by
the one with which this device ended its last round (before its first: the one that the stage began with), the loss is
``CE + μ l`` with ::

    l = −log e^{cos(z, z_glob)/τ} / (e^{cos(z, z_glob)/τ} + e^{cos(z, z_prev)/τ})

The projection lies between the encoder and the classifier and is part of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.core.fit import Batch, Loss
from fedge.core.method import Card, Device, Method
from fedge.core.payload import Payload, Tree
from fedge.methods.tuning import Tuning, doc, enter, leave, start_of
from fedge.models.features import entering, features
from fedge.models.names import attach
from fedge.models.projected import project
from fedge.models.share import share


@dataclass(frozen=True, kw_only=True)
class MOON(Tuning):
    """Everything is trained; the device keeps the model of its last round."""

    mu: float = field(default=1.0, metadata=doc("μ: weight of the contrast; 0 is FedAvg with a projection"))
    tau: float = field(default=0.5, metadata=doc("τ: temperature of the contrast"))
    width: int = field(default=256, metadata=doc("numbers in a projection"))

    card: ClassVar[Card] = Card(
        name="MOON",
        summary="a contrast pulls representations to the global model's and away from the device's previous one's",
        paper="Li et al. 2021, arXiv 2103.16257",
        stages=("train", "customize"),
        path="train/entire",
        leaves=("the change of all weights", "number of rows"),
        stars=(2, 1, 1),
        deviations=(
            "AdamW on the device; the paper's runs use SGD with momentum",
            "one previous model; the release can keep several",
            "a fixed number of local steps rather than epochs",
            "the survey files it under self-supervision with a round after every epoch; the paper's is supervised, "
            "with ten epochs a round",
        ),
        tasks=("image-classification", "text-classification"),
        alternatives=("fedavg", "fedema"),
        final="extended",
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mu < 0 or self.tau <= 0 or self.width <= 0:
            raise ValueError(f"mu of at least 0, tau and width above 0, not {self.mu}, {self.tau}, {self.width}")

    def variants(self) -> Sequence[Method]:
        lean = replace(self, micro_batch=max(1, self.batch // 4))
        return [self, lean, replace(lean, checkpointing=True), replace(lean, depth=self.depth / 2)]

    def build(self, base: nn.Module) -> nn.Module:
        return self.mark(project(base, self.width), lambda name, layer: True)

    def client(self, dev: Device, down: Payload) -> Payload:
        start = enter(dev, down["weights"])
        self.train(dev, self.contrast(dev, start) if self.mu else dev.task.loss, start)
        if self.mu:
            dev.state["previous"] = start_of(dev.model)
        return leave(dev, start)

    def contrast(self, dev: Device, received: Tree) -> Loss:
        """The loss against the model that was received and the one of this device's last round."""
        # a device that trained fewer blocks in its last round had what was received in the others
        before = {**received, **dev.state["previous"]} if "previous" in dev.state else dev.initial
        ours, previous = share(dev.model), share(dev.model)
        attach(ours, received)
        attach(previous, before)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            inputs = dev.task.inputs(batch)
            z, logits = entering(model, inputs)
            pull = contrastive(z, features(ours, inputs), features(previous, inputs), self.tau)
            return dev.task.loss_of(logits, batch["labels"]) + self.mu * pull

        return loss


def contrastive(z: Tensor, ours: Tensor, previous: Tensor, tau: float) -> Tensor:
    """The mean of l over rows, for projections ``[rows, width]``."""
    near, far = (functional.cosine_similarity(z, other, dim=-1) / tau for other in (ours, previous))
    return -(near - torch.logaddexp(near, far)).mean()
