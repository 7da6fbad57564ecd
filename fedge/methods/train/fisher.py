"""Fisher merging: models trained apart become one by their certainties (Recasens et al. 2023).

A device trains on its own, then takes the diagonal of its Fisher information, the mean over rows of the squared
gradient of ``log p_w(x̂ | x)`` with x̂ drawn from the model itself. Seen as Gaussians of precision ``a_k F_k`` the
devices' models multiply to one of mean ``w = Σ a_k F_k w_k / Σ a_k F_k``, coordinate by coordinate: one round, no data
seen again. What is predicted are masked tokens, next tokens or, for a classifier, labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.core.fit import Batch, squares
from fedge.core.method import Card, Device, Replies, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.core.task import IGNORE
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.tuning import doc, leave
from fedge.models.names import trainable


@dataclass(frozen=True, kw_only=True)
class Fisher(FedAvg):
    """Meant for a stage of one round with many ``steps``; further rounds merge again."""

    steps: int = field(default=50, metadata=doc("optimizer steps on the device before it sends its model"))
    samples: int = field(default=32, metadata=doc("rows over which a device takes its Fisher information"))
    targets: Literal["drawn", "observed"] = field(
        default="drawn", metadata=doc("x̂ drawn from the model (the Fisher), or the rows' own", "drawn", "observed")
    )
    normalise: bool = field(default=True, metadata=doc("divide each device's F by its norm over all tensors"))
    floor: float = field(default=1e-6, metadata=doc("least F of a coordinate; with only as much, all count alike"))

    card: ClassVar[Card] = replace(
        FedAvg.card,
        name="Fisher merging",
        summary="locally trained models are merged once, each weight by how certain each device is of it",
        paper="Recasens et al. 2023, NeurIPS workshop; Matena & Raffel 2021, arXiv 2111.09832",
        path="train/entire/aggregation",
        leaves=(
            "the change of every trained weight",
            "the squared gradients of every trained weight",
            "number of rows",
        ),
        stars=(3, 2, 1),
        deviations=(
            "diagonal Fisher only; with full matrices the merge of linear models would be exact",
            "for a classifier the likelihood is that of the labels; the paper's is self-supervised",
            "F is divided by its norm, as the merging code that the paper builds on does; normalise: false leaves it",
            *FedAvg.card.deviations,
        ),
        alternatives=("fedavg", "ldawa"),
        roles=("delta", "statistics"),
        family="own",
        claims=(),
    )
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples <= 0 or self.floor <= 0:
            raise ValueError(f"samples and floor must be above 0, not {self.samples} and {self.floor:g}")
        if self.targets not in ("drawn", "observed"):
            raise ValueError(f"targets is drawn or observed, not {self.targets!r}")

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        start = self.enter(dev, down)
        self.train(dev, dev.task.loss, start)
        information = self.information(dev)
        sent = leave(dev, start)
        return Payload({**sent.parts, "statistics": information}, weight=sent.weight)

    def information(self, dev: Device) -> Tree:
        """``F_k``, the diagonal of the device's Fisher information by name, floored and normalised."""
        parameters = trainable(dev.model)
        drawn = dev.generator("targets")

        def likelihood(model: nn.Module, row: Batch) -> Tensor:
            logits, labels = dev.task.aligned(model(**dev.task.inputs(row)).logits, row["labels"])
            if self.targets == "drawn":
                noise = torch.rand(logits.shape, generator=drawn).clamp_(1e-9, 1 - 1e-7)
                guess = (logits.detach() - torch.log(-torch.log(noise))).argmax(-1)  # Gumbel: a draw from softmax
                labels = torch.where(labels == IGNORE, labels, guess)
            return functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")

        rows = dev.data.batches(1, dev.generator("rows"))
        found = squares(
            dev.model, list(parameters.values()), rows, loss=likelihood, count=self.samples, spans=dev.meter
        )
        if self.normalise:
            size = torch.stack([tensor.square().sum() for tensor in found]).sum().sqrt()
            found = [tensor / size.clamp_min(1e-30) for tensor in found]
        return {name: tensor.clamp_min(self.floor) for name, tensor in zip(parameters, found, strict=True)}

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        moved: Tree = {}
        totals: Tree = {}
        for reply in replies.values():
            for name, delta in reply["delta"].items():
                precision = reply.weight * reply["statistics"][name].double()
                moved[name] = moved.get(name, torch.zeros(())) + precision * delta
                totals[name] = totals.get(name, torch.zeros(())) + precision
        change = {name: (tensor / totals[name]).to(state["weights"][name].dtype) for name, tensor in moved.items()}
        weights, moments = srv.optimizer.step(state["weights"], change, state["moments"])
        return {**state, "weights": weights, "moments": moments, "changed": sorted({*state["changed"], *change})}
