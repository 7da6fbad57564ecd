"""FedSA-LoRA: A carries what devices have in common and is shared, B stays at home (Guo et al. 2024, 2410.01463).

Every device trains A, B and the classifier, and sends A alone: ``A ← Σ p_k A_k``. B and the classifier are its own for
ever. What has been learnt lies on the devices: ``personal`` is a device's own model, and what the stage leaves to all
is the base with the shared A, which changes nothing until somebody trains a B for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fedge.core.method import Card, Device, Method, Server, State
from fedge.core.payload import Payload, Tree
from fedge.methods.customize.lora import LoRA
from fedge.methods.tuning import leave
from fedge.models.lora import merge
from fedge.models.names import attach, trainable


@dataclass(frozen=True, kw_only=True)
class FedSALoRA(LoRA):
    """LoRA's variants of which all train the whole rank."""

    card: ClassVar[Card] = Card(
        name="FedSA-LoRA",
        summary="A is shared and averaged; B and the classifier stay on the device",
        paper="Guo et al. 2024, arXiv 2410.01463",
        stages=("customize",),
        path="customize/fine-tune/additive/lora-homogeneous",
        leaves=("the change of the adapters' A", "number of rows"),
        deviations=(
            "the model that the stage leaves is the base's function: only the devices' own models have learnt",
            "devices may train upper blocks only; A of a block is averaged over those who trained it",
        ),
        alternatives=("lora", "ffa_lora"),
    )
    linear: ClassVar[bool] = True

    def variants(self) -> Sequence[Method]:
        return [v for v in super().variants() if isinstance(v, LoRA) and v.train_rank == self.train_rank]

    def init(self, srv: Server) -> State:
        state = super().init(srv)
        return {**state, "weights": {name: t for name, t in state["weights"].items() if common(name)}}

    def client(self, dev: Device, down: Payload) -> Payload:
        start = self.enter(dev, down)
        self.train(dev, dev.task.loss, start)
        tensors = trainable(dev.model)
        own = {name: parameter.detach().clone() for name, parameter in tensors.items() if not common(name)}
        dev.state["own"] = {**dev.state.get("own", {}), **own}
        reply = leave(dev, start)
        return Payload({"delta": {n: t for n, t in reply["delta"].items() if common(n)}}, weight=reply.weight)

    def enter(self, dev: Device, down: Payload) -> Tree:
        own = dev.state.get("own", {})
        start = super().enter(dev, down)
        attach(dev.model, own)
        return {name: own.get(name, tensor) for name, tensor in start.items()}

    def personal(self, dev: Device, down: Payload) -> nn.Module:
        attach(dev.model, {**down["weights"], **dev.state.get("own", {})})
        return merge(dev.model)


def common(name: str) -> bool:
    """Whether a tensor is shared by all devices."""
    return ".lora_A." in name
