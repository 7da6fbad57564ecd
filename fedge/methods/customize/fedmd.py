"""Two-way distillation on a public set: no weights travel, only logits (FedMD, Li & Wang 2019, arXiv 1910.03581).

A round: the server sends the consensus ``z̄ = Σ p_k z_k`` on the public rows; a device fits its own model to it (mean
absolute error on logits), then to its own rows, and answers with its logits on the public rows. Traffic does not depend
on the model's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.core.fit import Batch, fit
from fedge.core.fold import weighted_mean
from fedge.core.method import Card, Device, Method, Replies, Rows, Server, State
from fedge.core.payload import Payload
from fedge.methods.distil import beside, logits_on, own_model, shared_rows, train_own
from fedge.methods.tuning import doc, start_of
from fedge.models.names import load, trainable


@dataclass(frozen=True, kw_only=True)
class FedMD(Method):
    """Devices keep models of their own; ``digest`` steps go to the consensus, ``steps`` to the device's rows."""

    lr: float = field(default=1e-3, metadata=doc("learning rate on the device and of the server's student"))
    steps: int = field(default=8, metadata=doc("optimizer steps a round on the device's own rows"))
    digest: int = field(default=8, metadata=doc("optimizer steps a round towards the consensus"))
    batch: int = field(default=16, metadata=doc("rows in a step"))
    micro_batch: int | None = field(default=None, metadata=doc("rows at once; the rest of the step's are accumulated"))

    card: ClassVar[Card] = Card(
        name="FedMD",
        summary="devices agree on logits over a public set; models of any kind, weights never travel",
        paper="Li & Wang 2019, arXiv 1910.03581",
        stages=("customize",),
        path="customize/contraction/distillation",
        leaves=("logits on the public rows", "number of rows"),
        deviations=(
            "a student on the server is fitted to the consensus, so that the stage leaves one model; FedMD has none",
            "the consensus is weighted by rows; the paper weighs devices alike",
            "no pre-training on a labelled public set",
        ),
        tasks=("image-classification", "text-classification"),
        alternatives=("lora", "head"),
        roles=("logits",),
    )

    def variants(self) -> Sequence[Method]:
        return [self, replace(self, micro_batch=max(1, self.batch // 4))]

    def build(self, base: nn.Module) -> nn.Module:
        return base.requires_grad_(True)

    def init(self, srv: Server) -> State:
        shared_rows(srv, "fedmd")
        return {"consensus": {}, "student": start_of(srv.model())}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        return Payload({"logits": dict(state["consensus"])})

    def client(self, dev: Device, down: Payload) -> Payload:
        assert dev.public is not None
        model = own_model(dev)
        if down["logits"]:
            self.digest_logits(model, dev.public, down["logits"]["public"], dev.generator("digest"))
        train_own(dev, lr=self.lr, batch=self.batch, steps=self.steps, micro_batch=self.micro_batch)
        return Payload({"logits": {"public": logits_on(model, dev.task, dev.public)}}, weight=len(dev.data))

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        assert srv.public is not None
        consensus = weighted_mean((reply.weight, reply["logits"]) for reply in replies.values())
        student = srv.model()
        load(student, state["student"])
        self.digest_logits(student, srv.public, consensus["public"], srv.generator("student"))
        return {"consensus": consensus, "student": start_of(student)}

    def digest_logits(self, model: nn.Module, public: Rows, target: Tensor, generator: torch.Generator) -> None:
        """Fit ``model`` to the logits ``target [rows, classes]`` on the public rows."""

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            inputs = {name: column for name, column in batch.items() if name != "target"}
            return functional.l1_loss(model(**inputs).logits, batch["target"])

        fit(
            model,
            beside(public, {"target": target}, self.batch, generator),
            loss=loss,
            optimizer=torch.optim.Adam(trainable(model).values(), lr=self.lr),
            steps=self.digest,
            micro_batch=self.micro_batch,
        )

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.model()
        load(model, state["student"])
        return model

    def personal(self, dev: Device, down: Payload) -> nn.Module:
        return own_model(dev)
