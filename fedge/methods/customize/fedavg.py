"""FedAvg: every weight is trained on the devices and averaged (McMahan et al. 2017, arXiv 1602.05629).

``w ← w + Σ_k p_k (w_k − w)`` with ``p_k = n_k / Σ n`` over the round's participants (the survey's eq. 1). The reference
point for every ratio of traffic and memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from fedge.core.method import Card, Method
from fedge.methods.tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class FedAvg(Tuning):
    """All weights, or those of the upper layers in the variants for weaker devices."""

    card: ClassVar[Card] = Card(
        name="FedAvg (full fine-tuning)",
        summary="every weight is trained locally and averaged by rows",
        paper="McMahan et al. 2017, arXiv 1602.05629",
        stages=("train", "customize"),
        path="customize/fine-tune",
        leaves=("the change of every trained weight", "number of rows"),
        deviations=(
            "variants for weaker devices train only the upper layers; a weight is averaged over those who trained it",
            "a fixed number of local steps rather than epochs",
        ),
        family="tensors",
        claims=("alone",),
    )
    linear: ClassVar[bool] = True

    def variants(self) -> Sequence[Method]:
        small = max(1, self.batch // 4)
        return [
            self,
            replace(self, micro_batch=small),
            replace(self, micro_batch=small, depth=self.depth / 2),
            replace(self, micro_batch=small, depth=self.depth / 6),
        ]

    def build(self, base: nn.Module) -> nn.Module:
        return self.mark(base, lambda name, layer: "lora_" not in name)
