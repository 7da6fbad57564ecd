"""FedBABU: only the body is trained together, under one head that nobody trains (Oh et al. 2021, arXiv 2106.06042).

A device's own model comes after the stage: the head, fine-tuned on the device's rows for ``tune`` steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from fedge.core.method import Card, Device
from fedge.core.payload import Payload
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.fedper import heads
from fedge.methods.tuning import doc
from fedge.models.names import attach


@dataclass(frozen=True, kw_only=True)
class FedBABU(FedAvg):
    """Full fine-tuning but for the head, which stays at the base's start on every device."""

    tune: int = field(default=10, metadata=doc("steps on the head when a device takes a model of its own"))

    card: ClassVar[Card] = Card(
        name="FedBABU",
        summary="the body is trained and averaged under one untrained head; heads are tuned at the end, on the device",
        paper="Oh et al. 2021, arXiv 2106.06042",
        stages=("customize",),
        path="customize/fine-tune/personalised",
        leaves=("the change of the body's weights", "number of rows"),
        deviations=("a fixed number of local steps rather than epochs", "personal models tune the head, not all"),
        tasks=("image-classification", "text-classification"),
        alternatives=("fedper", "fedrep"),
        claims=("alone",),
    )

    def build(self, base: nn.Module) -> nn.Module:
        built = super().build(base)
        own = heads(built)
        for name, parameter in built.named_parameters():
            if name.startswith(own):
                parameter.requires_grad_(False)
        return built

    def personal(self, dev: Device, down: Payload) -> nn.Module:
        model = dev.model
        attach(model, down["weights"])
        own = heads(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(own))
            if name.startswith(own):
                parameter.data = parameter.detach().clone()
        self.train(dev, dev.task.loss, {}, steps=self.tune)
        return model
