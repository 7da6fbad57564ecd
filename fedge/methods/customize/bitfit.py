"""Bias tuning: only bias vectors and the new head are trained.

FedPEFT's bias variant (Sun et al. 2022, arXiv 2210.01708) and BitFit (Ben Zaken et al. 2021, arXiv 2106.10199) in a
federation: the same mechanics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from fedge.core.method import Card, Method
from fedge.methods.tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class BitFit(Tuning):
    """Every parameter whose name ends in ``bias`` (linear, normalisation, patch projection), and the new head."""

    card: ClassVar[Card] = Card(
        name="FedPEFT bias / BitFit",
        summary="only bias vectors and the classifier are trained and averaged",
        paper="Sun et al. 2022, arXiv 2210.01708; Ben Zaken et al. 2021, arXiv 2106.10199",
        stages=("customize",),
        path="customize/fine-tune/selective",
        leaves=("the change of bias vectors and classifier", "number of rows"),
        stars=(1, 2, 2),
        deviations=("AdamW on the device; the paper's vision runs use SGD",),
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
        return self.mark(base, lambda name, layer: name.endswith("bias"))
