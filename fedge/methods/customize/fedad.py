"""FedAD: logits and attention of models of the devices' own, distilled into one (Gong et al. 2021, ICCV).

A device trains alone and sends, for each public row, its logits ``z_k`` and where its model looked, ``A_k``, once, and
how many rows of each class it has, ``N_k``. The server's student is fitted to ``z̄[c] = Σ_k ω_k[c] z_k[c]`` with
``ω_k[c] = N_k[c] / Σ_j N_j[c]``; its map A must cover where all looked and stay within where any did::

    L = KL(softmax(z̄) ‖ softmax(s)) + λ ( mean relu(min_k A_k − A) + mean relu(A − max_k A_k) )
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.core.fit import Batch, fit
from fedge.core.method import Card, Device, Method, Replies, Rows, Server, State
from fedge.core.payload import Payload, Tree
from fedge.methods.distil import beside, kd, own_model, shared_rows, train_own
from fedge.methods.tuning import doc, start_of
from fedge.models.attention import looked, visible
from fedge.models.names import load, trainable


@dataclass(frozen=True, kw_only=True)
class FedAD(Method):
    """One way, meant for one round of many ``steps``: no weight and no label travels."""

    lr: float = field(default=1e-3, metadata=doc("learning rate on the device and of the server's student"))
    steps: int = field(default=32, metadata=doc("optimizer steps a round on the device's own rows"))
    digest: int = field(default=64, metadata=doc("steps of the server's student towards the ensemble, each round"))
    batch: int = field(default=16, metadata=doc("rows in a step"))
    micro_batch: int | None = field(default=None, metadata=doc("rows at once; the rest of the step's are accumulated"))
    lam: float = field(default=1.0, metadata=doc("λ: weight of the two attention losses"))
    logits: Literal["kl", "l1"] = field(default="kl", metadata=doc("how far apart class scores are", "kl", "l1"))
    reading: Literal["paper", "survey"] = field(
        default="paper", metadata=doc("devices weigh by class, or as the survey has it by rows", "paper", "survey")
    )

    card: ClassVar[Card] = Card(
        name="FedAD (ensemble attention distillation)",
        summary="models of the devices' own send logits and attention on public rows; the server distils them, once",
        paper="Gong et al. 2021, ICCV",
        stages=("customize",),
        path="customize/contraction/distillation",
        leaves=("logits on the public rows", "where the model looked in each public row", "rows of each class"),
        stars=(2, 2, 1),
        deviations=(
            "one map a row, the last block's attention from the pooled token; the paper's are Grad-CAM's, by class",
            "of a class that no device holds the plain mean of the logits is taken",
            "the survey has logits averaged by rows (FedAvg): reading: survey",
        ),
        tasks=("image-classification", "text-classification"),
        alternatives=("fedmd", "feddf"),
        roles=("logits", "statistics"),
    )

    def __post_init__(self) -> None:
        for name in ("lr", "batch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.lam < 0 or self.logits not in ("kl", "l1") or self.reading not in ("paper", "survey"):
            raise ValueError("lam is 0 or more, logits kl or l1, reading paper or survey")

    def variants(self) -> Sequence[Method]:
        return [self, replace(self, micro_batch=max(1, self.batch // 4))]

    def build(self, base: nn.Module) -> nn.Module:
        return visible(base).requires_grad_(True)

    def init(self, srv: Server) -> State:
        shared_rows(srv, "fedad")
        return {"student": start_of(srv.model())}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        return Payload({})

    def client(self, dev: Device, down: Payload) -> Payload:
        assert dev.public is not None
        model = own_model(dev)
        train_own(dev, lr=self.lr, batch=self.batch, steps=self.steps, micro_batch=self.micro_batch)
        counts = torch.zeros(dev.task.classes)
        for chunk in dev.data.chunks(64):
            counts += functional.one_hot(chunk["labels"], dev.task.classes).sum(0)
        said = self.said(model, dev.public, dev.task.inputs)
        return Payload({"logits": said, "statistics": {"counts": counts}}, weight=len(dev.data))

    @torch.no_grad()
    def said(self, model: nn.Module, public: Rows, inputs: object) -> Tree:
        """The logits ``[rows, classes]`` and the maps ``[rows, tokens]`` of a model on the public rows."""
        model.eval()
        found = [looked(model, inputs(chunk)) for chunk in public.chunks(self.micro_batch or self.batch)]  # type: ignore[operator]
        logits, maps = zip(*found, strict=True)
        return {"public": torch.cat(logits), "attention": torch.cat(maps)}

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        public = shared_rows(srv, "fedad")
        teacher = together(replies.values(), by_class=self.reading == "paper")
        student = srv.model()
        load(student, state["student"])
        fit(
            student,
            beside(public, teacher, self.batch, srv.generator("student")),
            loss=self.loss,
            optimizer=torch.optim.Adam(trainable(student).values(), lr=self.lr),
            steps=self.digest,
        )
        return {"student": start_of(student)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The student's loss on public rows, beside which stand the ensemble's logits and the bounds of its maps."""
        inputs = {name: column for name, column in batch.items() if name not in ("logits", "all", "any")}
        logits, seen = looked(model, inputs)
        if self.logits == "kl":
            apart = kd(logits, batch["logits"])
        else:
            apart = functional.l1_loss(logits.softmax(-1), batch["logits"].softmax(-1))
        consensus = functional.relu(batch["all"] - seen).mean()
        diversity = functional.relu(seen - batch["any"]).mean()
        return apart + self.lam * (consensus + diversity)

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.copy()
        load(model, state["student"])
        return model

    def personal(self, dev: Device, down: Payload) -> nn.Module:
        return own_model(dev)


def together(replies: Iterable[Payload], *, by_class: bool) -> Tree:
    """The ensemble's ``logits``, and where ``all`` of the devices' models looked and where ``any`` did."""
    sums: Tensor | None = None
    for reply in replies:
        said, seen, counts = reply["logits"]["public"], reply["logits"]["attention"], reply["statistics"]["counts"]
        share = counts if by_class else torch.full_like(counts, reply.weight)
        if sums is None:
            sums, plain, total, number = share * said, said.clone(), share.clone(), 1
            every, some = seen, seen
            continue
        sums, plain, total, number = sums + share * said, plain + said, total + share, number + 1
        every, some = torch.minimum(every, seen), torch.maximum(some, seen)
    assert sums is not None
    logits = torch.where(total > 0, sums / total.clamp_min(1e-12), plain / number)
    return {"logits": logits, "all": every, "any": some}
