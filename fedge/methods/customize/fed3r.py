"""Fed3R: the classifier in closed form from sums over the devices' rows (Fanì et al. 2023; 2024, arXiv 2406.01116).

With frozen features ``φ(x)``, a 1 appended, and one-hot labels ``Y``, a device sends ``A_k = Φᵀ Φ`` and ``b_k = Φᵀ Y``
once; the server solves ridge regression ``W = (λ I + Σ A_k)⁻¹ Σ b_k`` and divides each class's column by its norm. The
result is that of all rows in one place, whatever the partition, the order, or the number of devices.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.core.method import Ask, Card, Device, Method, Replies, Server, State
from fedge.core.payload import Payload
from fedge.methods.tuning import doc
from fedge.models.features import classifier, features


@dataclass(frozen=True, kw_only=True)
class Fed3R(Method):
    """No gradient at all; a device is asked once in a stage."""

    ridge: float = field(default=0.01, metadata=doc("λ, added once to the diagonal of the summed Gram matrix"))
    normalise: bool = field(default=True, metadata=doc("divide each class's weights and bias by their norm"))
    batch: int = field(default=64, metadata=doc("rows in a forward pass"))

    card: ClassVar[Card] = Card(
        name="Fed3R",
        summary="a ridge-regression classifier on frozen features, exact for any partition, in one round",
        paper="Fanì et al. 2023, NeurIPS workshop; 2024, arXiv 2406.01116",
        stages=("train", "customize"),
        path="train/partial/additive",
        leaves=("the Gram matrix of the features", "their sums by class, from which class means follow"),
        deviations=(
            "no random features and no fine-tuning after; give the model to a further stage instead",
            "the survey describes it as prototypes with a penalty on their magnitude; built is the paper's ridge",
        ),
        tasks=("image-classification", "text-classification"),
        alternatives=("head", "legate2024"),
        roles=("statistics",),
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.ridge <= 0 or self.batch <= 0:
            raise ValueError(f"ridge and batch must be above 0, not {self.ridge} and {self.batch}")

    def variants(self) -> Sequence[Method]:
        return [self, replace(self, batch=max(1, self.batch // 8))]

    def build(self, base: nn.Module) -> nn.Module:
        classifier(base)
        return base.requires_grad_(False)

    def init(self, srv: Server) -> State:
        _, last = classifier(srv.base())
        width, classes = last.in_features + 1, last.out_features
        gram = torch.zeros(width * (width + 1) // 2, dtype=torch.float64)
        return {"gram": gram, "moments": torch.zeros(width, classes, dtype=torch.float64), "seen": []}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        return Payload({})

    def client(self, dev: Device, down: Payload) -> Payload:
        _, last = classifier(dev.model)
        width = last.in_features + 1
        gram = torch.zeros(width, width, dtype=torch.float64)
        moments = torch.zeros(width, last.out_features, dtype=torch.float64)
        for chunk in dev.data.chunks(self.batch):
            with dev.meter.span("forward"):
                phi = functional.pad(features(dev.model, dev.task.inputs(chunk)).double(), (0, 1), value=1.0)
            gram += phi.T @ phi
            moments += phi.T @ functional.one_hot(chunk["labels"], last.out_features).double()
        return Payload({"statistics": {"gram": gram[_upper(width)], "moments": moments}})

    def round(self, srv: Server, state: State) -> Generator[Ask, Replies, State]:
        new = [device for device in srv.cohort if device not in state["seen"]]
        if not new:
            return state
        replies = yield Ask({device: self.down(srv, state, device) for device in new})
        return self.update(srv, state, replies)

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        gram, moments = state["gram"], state["moments"]
        for reply in replies.values():
            gram = gram + reply.weight * reply["statistics"]["gram"]
            moments = moments + reply.weight * reply["statistics"]["moments"]
        return {"gram": gram, "moments": moments, "seen": sorted({*state["seen"], *replies})}

    def solve(self, gram: Tensor, moments: Tensor) -> Tensor:
        """The classifier ``[width + 1, classes]`` in float64, its last row the bias, from the packed sums."""
        width = len(moments)
        whole = torch.zeros(width, width, dtype=gram.dtype)
        whole[_upper(width)] = gram
        whole = whole + whole.T - torch.diag(whole.diagonal())
        found = torch.linalg.solve(whole + self.ridge * torch.eye(width, dtype=gram.dtype), moments)
        return found / found.norm(dim=0).clamp_min(1e-6) if self.normalise else found

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.copy()
        if not state["seen"]:
            return model
        _, last = classifier(model)
        found = self.solve(state["gram"], state["moments"]).to(last.weight.dtype)
        with torch.no_grad():
            last.weight.copy_(found[:-1].T)
            last.bias.copy_(found[-1])
        return model


def _upper(width: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(width, width)
    return rows, columns
