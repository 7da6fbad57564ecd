"""FFA-LoRA: A is drawn once and frozen for ever, only B is trained (Sun et al. 2024, arXiv 2403.12313).

With one A for all, the mean of products is the product of means, ``Σ p_k B_k A = (Σ p_k B_k) A``: averaging is exact,
half the bytes travel, and noise added to B alone stays linear.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from fedge.core.fields import doc
from fedge.core.method import Card
from fedge.methods.customize.lora import LoRA
from fedge.models.names import TRAINED


@dataclass(frozen=True, kw_only=True)
class FFALoRA(LoRA):
    """LoRA's variants; A comes from the stage's seed on every device and never travels."""

    lr: float = field(default=3e-3, metadata=doc("learning rate on the device; two to five times that of LoRA"))

    card: ClassVar[Card] = Card(
        name="FFA-LoRA",
        summary="low-rank adapters with one frozen random A for all; only B is trained and averaged, exactly",
        paper="Sun et al. 2024, arXiv 2403.12313",
        stages=("customize",),
        path="customize/fine-tune/additive/lora-homogeneous",
        leaves=("the change of the adapters' B and of the classifier", "number of rows"),
        deviations=(
            "devices may train fewer rank slots or only upper blocks; the paper has one rank and all blocks",
            "in a mixed cohort that also trains A (with lora), A moves",
            "a fixed number of local steps rather than an epoch",
        ),
        family="tensors",
    )
    linear: ClassVar[bool] = True

    def build(self, base: nn.Module) -> nn.Module:
        base = super().build(base)
        return self.mark(base, lambda name, layer: ".lora_B." in name and f".{TRAINED}." in name)
