"""FedDF: FedAvg, then the server fits the average to what all the devices' models say (Lin et al. 2020, 2006.07242).

After the mean of the devices' models comes ensemble distillation on rows without labels that the server holds:
``min_w KL(softmax(z̄ / T) ‖ softmax(f_w(x) / T))`` with ``z̄ = mean_k f_{w_k}(x)``, by Adam with a cosine rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedge.core.fit import Batch, fit
from fedge.core.method import Card, Replies, Rows, Server, State
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.distil import beside, kd, logits_on, shared_rows
from fedge.methods.tuning import average, doc, start_of
from fedge.models.names import load, trainable


@dataclass(frozen=True, kw_only=True)
class FedDF(FedAvg):
    """Models travel as in FedAvg; ``digest`` steps on the server bring their mean to what they say together."""

    digest: int = field(default=50, metadata=doc("steps of the server towards the ensemble, each round"))
    digest_lr: float = field(default=1e-3, metadata=doc("first learning rate of these; it falls to 0 as a cosine"))
    digest_batch: int = field(default=64, metadata=doc("public rows in such a step"))
    temperature: float = field(default=1.0, metadata=doc("T of the distillation"))
    ensemble: Literal["logits", "probs"] = field(
        default="logits", metadata=doc("what is averaged over the devices' models", "logits", "probs")
    )

    card: ClassVar[Card] = replace(
        FedAvg.card,
        name="FedDF",
        summary="FedAvg, then the server distils the ensemble of the devices' models into their mean",
        paper="Lin et al. 2020, arXiv 2006.07242",
        stages=("customize",),
        path="customize/contraction/distillation",
        deviations=(
            "one architecture: all devices train the one base, so there is one student and not one for each group",
            "a fixed number of steps; no early stop, which needs validation rows, and no model is dropped as too bad",
            *FedAvg.card.deviations,
        ),
        tasks=("image-classification", "text-classification"),
        alternatives=("fedmd", "fedad", "fedavg"),
        family="own",
        claims=(),
    )
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.digest_lr, self.digest_batch, self.temperature) <= 0:
            raise ValueError("digest_lr, digest_batch and temperature must be above 0")
        if self.ensemble not in ("logits", "probs"):
            raise ValueError(f"ensemble is logits or probs, not {self.ensemble!r}")

    def init(self, srv: Server) -> State:
        shared_rows(srv, "feddf")
        return super().init(srv)

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        public = shared_rows(srv, "feddf")
        teacher = self.said(srv, state, replies, public)
        state = average(srv, state, replies)
        student = srv.model()
        load(student, state["weights"])
        self.distil(student, public, teacher, srv.generator("digest"))
        weights = start_of(student)
        return {**state, "weights": weights, "changed": sorted(weights)}

    def said(self, srv: Server, state: State, replies: Replies, public: Rows) -> Tensor:
        """What the devices' models say together of the public rows, as logits ``[rows, classes]``."""
        model = srv.model()
        said = []
        for reply in replies.values():
            load(model, state["weights"])
            load(model, {name: state["weights"][name] + delta for name, delta in reply["delta"].items()})
            logits = logits_on(model, srv.task, public)
            said.append(logits if self.ensemble == "logits" else (logits / self.temperature).softmax(-1))
        mean = torch.stack(said).mean(0)
        return mean if self.ensemble == "logits" else mean.clamp_min(1e-30).log() * self.temperature

    def distil(self, student: nn.Module, public: Rows, teacher: Tensor, generator: torch.Generator) -> None:
        """Fit ``student`` to the logits ``teacher`` on the public rows."""
        parameters = list(trainable(student).values())
        optimizer = torch.optim.Adam(parameters, lr=self.digest_lr)
        place = 0

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            inputs = {name: column for name, column in batch.items() if name != "teacher"}
            return kd(model(**inputs).logits, batch["teacher"], self.temperature)

        def prepare(model: nn.Module) -> None:
            nonlocal place
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.param_groups[0]["lr"] = self.digest_lr * (1 + math.cos(math.pi * place / self.digest)) / 2
            place += 1

        batches = beside(public, {"teacher": teacher}, self.digest_batch, generator)
        fit(student, batches, loss=loss, optimizer=optimizer, steps=self.digest, after_backward=prepare)
