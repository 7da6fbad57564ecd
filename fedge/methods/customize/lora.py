"""LoRA averaged factor by factor: FedIT (Zhang et al. 2024, arXiv 2305.05644) on peft's adapters.

``W = W₀ + (α/R) B A`` with ``A [R, in]``, ``B [out, R]``; devices train A, B and the new head, the server averages each
factor. A device that trains fewer than R rank slots still runs all of them and trains the first r, so every device
computes the same global function and a slot is the mean over those who trained it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import nn

from fedge.core.method import Card, Method, Server, State
from fedge.methods.tuning import Tuning, doc
from fedge.models.lora import adapted, inject, merge
from fedge.models.names import TRAINED, load


@dataclass(frozen=True, kw_only=True)
class LoRA(Tuning):
    """Adapters in all blocks; the variants train those of the upper blocks, fewer rows at once, fewer rank slots."""

    rank: int = field(default=8, metadata=doc("rank R of the adapters that every device runs"))
    train_rank: int | None = field(default=None, metadata=doc("how many of the rank slots this device trains"))
    alpha: float = field(default=16.0, metadata=doc("scale of the adapters is alpha / rank"))
    targets: tuple[str, ...] | None = field(default=None, metadata=doc("modules that get adapters (query and value)"))

    card: ClassVar[Card] = Card(
        name="FedIT: LoRA averaged factor by factor",
        summary="low-rank adapters through peft, each factor averaged by rows",
        paper="Zhang et al. 2024, arXiv 2305.05644; Hu et al. 2021, arXiv 2106.09685",
        stages=("customize",),
        path="customize/fine-tune/additive/lora-homogeneous",
        leaves=("the change of the adapters' factors and of the classifier", "number of rows"),
        stars=(2, 2, 2),
        deviations=(
            "the mean of factors is not the mean of products; FedIT's own error, kept",
            "devices may train fewer rank slots or only upper blocks; the paper has one rank and all blocks",
            "a fixed number of local steps rather than an epoch",
        ),
        family="tensors",
        claims=("alone",),
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank <= 0 or (self.train_rank is not None and not 0 < self.train_rank <= self.rank):
            raise ValueError(f"rank must be above 0 and train_rank within it, not {self.rank} and {self.train_rank}")

    def variants(self) -> Sequence[Method]:
        small = max(1, self.batch // 4)
        lean = replace(self, micro_batch=small)
        return [
            self,
            lean,
            replace(lean, checkpointing=True),
            replace(lean, depth=self.depth / 2),
            replace(lean, depth=self.depth / 6),
            replace(lean, depth=self.depth / 6, train_rank=max(1, (self.train_rank or self.rank) // 2)),
        ]

    def build(self, base: nn.Module) -> nn.Module:
        if not adapted(base):
            targets = list(self.targets) if self.targets else None
            inject(base, rank=self.rank, alpha=self.alpha, targets=targets, train_rank=self.train_rank)
        return self.mark(base, lambda name, layer: ".lora_" in name and f".{TRAINED}." in name)

    def final(self, srv: Server, state: State) -> nn.Module:
        return merge(self.adapter(srv, state))

    def adapter(self, srv: Server, state: State) -> nn.Module:
        model = srv.model()
        load(model, state["weights"])
        return model
