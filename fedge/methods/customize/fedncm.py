"""FedNCM and fine-tuning: class means become the head, then all is trained (Legate et al. 2024, arXiv 2306.03937).

In the first ``head_rounds`` rounds a device sends, for each class, the sum of its frozen features and the number of its
rows; row c of the head becomes ``μ_c / ‖μ_c‖`` with ``μ_c = Σ_k S_k[c] / Σ_k N_k[c]``, the same for every partition.
From then on it is FedAvg. With ``first: lp`` the first rounds train the head instead (LP+FT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from fedge.core.fold import weighted_mean
from fedge.core.method import Card, Device, Method, Replies, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.methods.tuning import Tuning, average, doc, leave
from fedge.models.features import classifier, features


@dataclass(frozen=True, kw_only=True)
class FedNCM(Tuning):
    """A head without gradients, then full fine-tuning from it."""

    first: Literal["ncm", "lp"] = field(default="ncm", metadata=doc("how the head begins: class means, or trained"))
    head_rounds: int = field(default=1, metadata=doc("rounds that make the head, before all weights are trained"))

    card: ClassVar[Card] = Card(
        name="FedNCM + fine-tuning",
        summary="the head is built from class means without gradients, then every weight is trained from there",
        paper="Legate et al. 2024, arXiv 2306.03937",
        stages=("customize",),
        path="customize/fine-tune/additive/adapter",
        leaves=("sums of features and numbers of rows by class, once", "then the change of every trained weight"),
        deviations=(
            "the head's bias begins at zero; the release leaves it at its random start",
            "devices that are away in the first rounds do not count for the head",
            "variants for weaker devices train only the upper layers",
        ),
        tasks=("image-classification", "text-classification"),
        alternatives=("fedavg", "fed3r"),
        roles=("statistics", "delta"),
        waives=(("still", "the head is built from class means, which takes no step"),),
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_rounds <= 0:
            raise ValueError(f"head_rounds must be above 0, not {self.head_rounds}")
        if self.first not in ("ncm", "lp"):
            raise ValueError(f"first is ncm or lp, not {self.first!r}")

    def variants(self) -> Sequence[Method]:
        lean = replace(self, micro_batch=max(1, self.batch // 4))
        return [self, lean, replace(lean, depth=self.depth / 2), replace(lean, depth=self.depth / 6)]

    def phases(self) -> Sequence[int]:
        return (0, self.head_rounds)

    def build(self, base: nn.Module) -> nn.Module:
        classifier(base)
        return self.mark(base, lambda name, layer: True)

    def init(self, srv: Server) -> State:
        return {**super().init(srv), "sums": {}}

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        if dev.round >= self.head_rounds:
            return super().client(dev, down)
        start = self.enter(dev, down)
        if self.first == "ncm":
            return self.means(dev)
        name, last = classifier(dev.model)
        for parameter in dev.model.parameters():
            parameter.requires_grad_(False)
        last.requires_grad_(True)
        self.train(dev, dev.task.loss, start)
        sent = leave(dev, {n: t for n, t in start.items() if n.startswith(f"{name}.")})
        dev.model.requires_grad_(False)
        self.build(dev.model)
        return sent

    def means(self, dev: Device) -> Payload:
        """Sums of features ``[classes, width]`` and numbers of rows ``[classes]``, both by the device's rows."""
        _, last = classifier(dev.model)
        sums = torch.zeros(last.out_features, last.in_features, dtype=torch.float64)
        counts = torch.zeros(last.out_features, dtype=torch.float64)
        for chunk in dev.data.chunks(self.micro_batch or self.batch):
            with dev.meter.span("forward"):
                phi = features(dev.model, dev.task.inputs(chunk)).double()
            chosen = functional.one_hot(chunk["labels"], last.out_features).double()
            sums += chosen.T @ phi
            counts += chosen.sum(0)
        n = len(dev.data)
        return Payload({"statistics": {"sums": sums / n, "counts": counts / n}}, weight=n)

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        if srv.round >= self.head_rounds or self.first == "lp":
            return average(srv, state, replies)
        total = sum(reply.weight for reply in replies.values())
        mean = weighted_mean((reply.weight, reply["statistics"]) for reply in replies.values())
        sums = {name: tensor * total + state["sums"].get(name, 0.0) for name, tensor in mean.items()}
        head = self.head(srv.base(), sums)
        return {
            **state,
            "sums": sums,
            "weights": {**state["weights"], **head},
            "changed": sorted({*state["changed"], *head}),
        }

    def head(self, base: nn.Module, sums: Tree) -> Tree:
        """The head's tensors by name from the summed statistics; a class that nobody holds keeps the base's row."""
        name, last = classifier(base)
        held = (sums["counts"] > 0).unsqueeze(1)
        means = functional.normalize(sums["sums"] / sums["counts"].clamp_min(1.0).unsqueeze(1), dim=1)
        weight = torch.where(held, means.to(last.weight.dtype), last.weight.detach())
        return {f"{name}.weight": weight, f"{name}.bias": torch.zeros_like(last.bias)}
