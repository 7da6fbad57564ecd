"""Head only: the body is frozen, the classifier is trained on the devices and averaged.

The survey's example of an additive layer at the end (arXiv 2509.05142, figure 5a).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import nn

from fedge.core.method import Card, Method
from fedge.methods.tuning import Tuning, doc


@dataclass(frozen=True, kw_only=True)
class Head(Tuning):
    """Only the classifier; gradients never enter the body, so no activations are kept."""

    lr: float = field(default=1e-2, metadata=doc("learning rate on the device"))

    card: ClassVar[Card] = Card(
        name="Head only (linear probe)",
        summary="the body stays frozen, the classifier is trained and averaged",
        paper="linear probing; the survey's figure 5a (arXiv 2509.05142)",
        stages=("customize",),
        path="customize/fine-tune/additive",
        leaves=("the change of the classifier", "number of rows"),
        deviations=("features are computed at every step, not cached",),
        tasks=("image-classification", "text-classification"),
        alternatives=("lora", "bitfit"),
        family="tensors",
    )
    linear: ClassVar[bool] = True

    def variants(self) -> Sequence[Method]:
        return [self, replace(self, micro_batch=max(1, self.batch // 4)), replace(self, micro_batch=1)]

    def build(self, base: nn.Module) -> nn.Module:
        return self.mark(base, lambda name, layer: False)
