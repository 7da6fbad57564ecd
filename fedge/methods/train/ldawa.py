"""L-DAWA: each device's layer counts by its cosine to the global model's (Rehman et al. 2023, arXiv 2307.07393).

For every tensor l, ``c_k = min(1, ⟨w_k, w⟩ / (‖w_k‖ ‖w‖))`` and ``w ← (1/K) Σ_k c_k w_k``. The weights ``c_k`` are not
made to add up to one, so a layer that devices pull apart also shrinks; ``normalise`` divides by ``Σ c_k`` instead. A
tensor of norm zero (a bias that was never trained) is averaged plainly.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedge.core.method import Card, Replies, Server, State
from fedge.core.payload import Tree
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.tuning import doc


@dataclass(frozen=True, kw_only=True)
class LDAWA(FedAvg):
    """FedAvg's rounds; the server looks at each layer's direction."""

    normalise: bool = field(default=False, metadata=doc("divide by the sum of the cosines instead of by their number"))
    clamp: bool = field(default=False, metadata=doc("a layer that points away counts nothing, rather than negatively"))
    weighting: Literal["uniform", "rows"] = field(
        default="uniform", metadata=doc("what a device counts by besides", "uniform", "rows")
    )

    card: ClassVar[Card] = replace(
        FedAvg.card,
        name="L-DAWA (layer-wise divergence-aware weight aggregation)",
        summary="each device's layer is weighted by its cosine to the global model's layer",
        paper="Rehman et al. 2023, arXiv 2307.07393",
        path="train/entire/aggregation",
        stars=(1, 1, 1),
        deviations=(
            "the local loss is the stage's task; the paper's devices train by contrast (SimCLR, Barlow Twins)",
            "buffers don't travel, so no running variance is multiplied by a cosine, as the release does",
            *FedAvg.card.deviations,
        ),
        alternatives=("fedavg",),
        family="own",
        claims=(),
    )
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in ("uniform", "rows"):
            raise ValueError(f"weighting is uniform or rows, not {self.weighting!r}")

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        weights: Tree = state["weights"]
        sums: Tree = {}
        totals: Tree = {}
        for reply in replies.values():
            share = reply.weight if self.weighting == "rows" else 1.0
            for name, delta in reply["delta"].items():
                own = (weights[name] + delta).double()
                counts = self.agreement(own, weights[name].double())
                sums[name] = sums.get(name, torch.zeros_like(own)) + share * counts * own
                totals[name] = totals.get(name, torch.zeros(())) + share * (counts if self.normalise else 1.0)
        change = {
            name: torch.where(totals[name] > 0, summed / totals[name].clamp_min(1e-12) - weights[name].double(), 0.0)
            for name, summed in sums.items()
        }
        change = {name: tensor.to(weights[name].dtype) for name, tensor in change.items()}
        weights, moments = srv.optimizer.step(weights, change, state["moments"])
        return {**state, "weights": weights, "moments": moments, "changed": sorted({*state["changed"], *change})}

    def agreement(self, own: Tensor, before: Tensor) -> Tensor:
        """``c_k`` of one tensor, 0-d: the cosine to the global one, at most 1; 1 where either is all zeros."""
        norms = own.norm() * before.norm()
        cosine = (own * before).sum() / norms.where(norms > 0, 1.0)
        return cosine.where(norms > 0, 1.0).clamp(min=0.0 if self.clamp else -1.0, max=1.0)
