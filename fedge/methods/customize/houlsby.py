"""Bottleneck adapters in every block, averaged (Houlsby et al. 2019, arXiv 1902.00751, in a federation).

Adapters, the blocks' normalisation layers and the new head are trained; ``L · 2 (2 d w + w + d) + 4 d L + H`` numbers
travel each way for L blocks of width d, adapters of width w and a head of H numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import nn

from fedge.core.method import Card, Method
from fedge.methods.tuning import Tuning, doc
from fedge.models.adapter import insert
from fedge.models.anatomy import anatomy
from fedge.models.extras import is_extra


@dataclass(frozen=True, kw_only=True)
class Houlsby(Tuning):
    """Adapters that change nothing at first; the variants train those of the upper blocks, fewer rows at once."""

    width: int = field(default=16, metadata=doc("w: how narrow the adapters are"))
    place: Literal["both", "output"] = field(
        default="both",
        metadata=doc("after both sublayers of a block, or the second alone (Pfeiffer)", "both", "output"),
    )
    norms: bool = field(default=True, metadata=doc("train the blocks' normalisation layers too"))
    reading: Literal["paper", "survey"] = field(
        default="paper",
        metadata=doc("adapters in every block, or (survey) one before the last layer alone", "paper", "survey"),
    )

    card: ClassVar[Card] = Card(
        name="Houlsby adapters",
        summary="small bottleneck layers in every block are trained and averaged, with the norms and the classifier",
        paper="Houlsby et al. 2019, arXiv 1902.00751",
        stages=("customize",),
        path="customize/fine-tune/additive/adapter",
        leaves=("the change of adapters, normalisation layers and classifier", "number of rows"),
        stars=(1, 3, 3),
        deviations=(
            "the paper is no federated one; adapters are averaged by rows, as FedPETuning does",
            "normalisation layers outside of the blocks stay frozen",
            "the survey describes one extra layer at the end; that is 'reading: survey'",
            "the adapters' names and their file are fedge's own: peft has no such adapter",
        ),
        family="tensors",
        final="extended",
        claims=("alone",),
        alternatives=("lora", "bitfit", "fedavg"),
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width <= 0:
            raise ValueError(f"width must be above 0, not {self.width}")
        if self.place not in ("both", "output") or self.reading not in ("paper", "survey"):
            raise ValueError(f"place is both or output, reading paper or survey, not {self.place}, {self.reading}")

    def variants(self) -> Sequence[Method]:
        lean = replace(self, micro_batch=max(1, self.batch // 4))
        if self.reading == "survey":
            return [self, lean]
        return [
            self,
            lean,
            replace(lean, checkpointing=True),
            replace(lean, depth=self.depth / 2),
            replace(lean, depth=self.depth / 6),
        ]

    def build(self, base: nn.Module) -> nn.Module:
        insert(base, self.width, self.place if self.reading == "paper" else "head")
        norms = self.norms and self.reading == "paper"
        anatomy(base)  # says which architectures have blocks that can be told
        return self.mark(base, lambda name, layer: is_extra(name) or (norms and layer is not None and _is_norm(name)))


def _is_norm(name: str) -> bool:
    return "norm" in name.lower() or ".ln_" in name
