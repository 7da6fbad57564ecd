"""HetLoRA: a rank for each device, pruned by itself; padded, weighted by size, truncated (Cho et al., 2401.06432).

A device gets the first ``r_k`` slots. Its loss carries ``λ Σ ‖B[:, c:]‖ ‖A[c:]‖`` over the modules with
``c = ⌊γ r_k⌋``; when that tail has shrunk against what was received, it is dropped for good: ``r_k ← max(r_min, c)``.
The server pads with zeros to the round's highest rank and averages with ``p_k = ‖B_k A_k‖ / Σ ‖B_j A_j‖``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedge.core.fields import doc
from fedge.core.fit import Batch, Loss
from fedge.core.fold import Pair, padded, product_norm
from fedge.core.method import Card, Device, Replies, Server, State
from fedge.core.payload import Payload, Tree
from fedge.core.value import value
from fedge.methods.lowrank import LowRank, covered_mean, cut, rank_of
from fedge.methods.tuning import average
from fedge.models.lora import named, paired
from fedge.models.names import trainable


@dataclass(frozen=True, kw_only=True)
class HetLoRA(LowRank):
    """The first slots are everyone's; the order of slots carries meaning."""

    gamma: float = field(default=0.99, metadata=doc("share of its slots that a device keeps when it prunes"))
    penalty: float = field(default=1e-2, metadata=doc("lambda: how hard the tail is pulled towards nothing"))
    least: int = field(default=1, metadata=doc("rank below which no device prunes itself"))
    norms: Literal["device", "module"] = field(
        default="device", metadata=doc("weights by the norm of a whole update, or module by module", "device", "module")
    )

    card: ClassVar[Card] = Card(
        name="HetLoRA",
        summary="a rank for each device, pruned by itself; zero-padded, averaged by the norm of the updates",
        paper="Cho et al. 2024, arXiv 2401.06432",
        stages=("customize",),
        path="customize/fine-tune/additive/lora-heterogeneous",
        leaves=("the adapters' factors at the device's rank", "the change of the classifier", "number of rows"),
        stars=(3, 2, 3),
        deviations=(
            "a device that has pruned keeps its memory: the dropped slots are zero there, they travel no more",
            "slots that nobody in a round holds keep their value",
            "devices may train upper blocks only; a module's mean is over those who trained it",
            "the classifier is averaged by rows; the server optimizer moves it alone",
        ),
        roles=("weights", "delta"),
        waives=(("bytes", "a device prunes its rank by the values of its factors; the plan is for the rank before"),),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma <= 1 or self.penalty < 0 or self.least <= 0:
            raise ValueError(
                f"gamma in (0, 1], penalty of at least 0, least above 0, not {self.gamma}, {self.penalty}, {self.least}"
            )

    def init(self, srv: Server) -> State:
        return {**super().init(srv), "ranks": {}}

    def share(self, srv: Server, state: State, device: str) -> dict[str, Pair]:
        rank = min(rank_of(srv, device), state["ranks"].get(device, self.rank))
        return {name: cut(pair, rank) for name, pair in paired(state["factors"]).items()}

    def client(self, dev: Device, down: Payload) -> Payload:
        start = self.enter(dev, down)
        rank = min(len(a) for a, _ in paired(down["weights"]).values())
        kept = math.floor(self.gamma * rank)
        self.train(dev, self.pulled(dev.task.loss, kept), start)
        with torch.no_grad():
            shrunk = tail(trainable(dev.model), kept) - tail(start, kept)
        if value(shrunk, traced=0.0) < 0:
            rank = min(rank, max(self.least, kept))
        reply = self.answer(dev, start)
        reply.parts["weights"] = named({name: cut(pair, rank) for name, pair in paired(reply["weights"]).items()})
        return reply

    def pulled(self, loss: Loss, kept: int) -> Loss:
        """The loss with the pull on the tail."""

        def with_tail(model: nn.Module, batch: Batch) -> Tensor:
            return loss(model, batch) + self.penalty * tail(trainable(model), kept)

        return with_tail

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        pairs = {device: paired(reply["weights"]) for device, reply in replies.items()}
        ranks = {device: len(next(iter(found.values()))[0]) for device, found in pairs.items()}
        widest = max(ranks.values())
        weights = self.counts(pairs, {device: reply.weight for device, reply in replies.items()})

        def sent() -> Iterator[tuple[float, Tree]]:
            for device, found in pairs.items():
                for module, pair in found.items():
                    yield weights[device, module], named({module: padded(pair, widest)})

        known = {**state["ranks"], **{d: r for d, r in ranks.items() if r < rank_of(srv, d)}}
        return {**average(srv, state, replies), "factors": covered_mean(state["factors"], sent()), "ranks": known}

    def counts(
        self, pairs: Mapping[str, Mapping[str, Pair]], rows: Mapping[str, float]
    ) -> dict[tuple[str, str], float]:
        """What each device counts in each module: the norm of its update, by rows where all of these are nothing."""
        norms = {(d, m): value(product_norm(p), traced=1.0) for d, found in pairs.items() for m, p in found.items()}
        if self.norms == "device":
            whole = {d: math.hypot(*(norms[d, module] for module in found)) for d, found in pairs.items()}
            norms = {(d, module): whole[d] for d, module in norms}
        moved = {module for (_, module), norm in norms.items() if norm > 0}
        return {(d, module): norm if module in moved else rows[d] for (d, module), norm in norms.items()}


def tail(tree: Mapping[str, Tensor], kept: int) -> Tensor:
    """``Σ ‖B[:, kept:]‖_F ‖A[kept:]‖_F`` over the modules."""
    norms = [torch.linalg.norm(b[:, kept:]) * torch.linalg.norm(a[kept:]) for a, b in paired(tree).values()]
    return torch.stack(norms).sum()
