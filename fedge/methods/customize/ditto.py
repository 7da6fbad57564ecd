"""Ditto: FedAvg, and beside it a model of the device's own that is pulled towards the common one (Li et al. 2021).

arXiv 2012.04221, algorithm 1: ``v ← v − η (∇F_k(v) + λ (v − w))`` with w as it was received. What is learnt together is
FedAvg's bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import nn

from fedge.core.fit import fit
from fedge.core.method import Card, Device, Talk
from fedge.core.payload import Payload, Tree
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.tuning import doc, leave, proximal, start_of
from fedge.models.names import load, trainable


@dataclass(frozen=True, kw_only=True)
class Ditto(FedAvg):
    """``lam`` is λ: 0 is training alone, more is nearer to the common model."""

    lam: float = field(default=1.0, metadata=doc("λ: pull of the device's own model towards the common one"))
    own_steps: int = field(default=8, metadata=doc("steps a round on the device's own model"))

    card: ClassVar[Card] = replace(
        FedAvg.card,
        name="Ditto",
        summary="FedAvg, and on each device a model of its own pulled towards the common one",
        paper="Li et al. 2021, arXiv 2012.04221",
        stages=("customize",),
        path="customize/fine-tune/personalised",
        deviations=(*FedAvg.card.deviations, "the optimizer of the device's own model starts anew each round"),
        alternatives=("fedper", "fedavg"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lam < 0 or self.own_steps <= 0:
            raise ValueError(f"lam is 0 or more and own_steps above 0, not {self.lam} and {self.own_steps}")

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        start = self.enter(dev, down)
        self.train(dev, dev.task.loss, start)
        common = start_of(dev.model)
        load(dev.model, dev.state.get("own", start))
        self.train_own(dev, start)
        dev.state["own"] = start_of(dev.model)
        load(dev.model, common)
        return leave(dev, start)

    def train_own(self, dev: Device, received: Tree) -> None:
        """The device's own model, where it stands, with the pull towards what was received."""
        loss = proximal(dev.task.loss, received, self.lam) if self.lam else dev.task.loss
        fit(
            dev.model,
            dev.data.batches(self.batch, dev.generator("own")),
            loss=loss,
            optimizer=self.local_optimizer(trainable(dev.model).values()),
            steps=self.own_steps,
            micro_batch=self.micro_batch,
            spans=dev.meter,
        )

    def personal(self, dev: Device, down: Payload) -> nn.Module:
        load(dev.model, dev.state.get("own", {}))
        return dev.model
