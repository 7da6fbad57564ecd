"""What the prompt methods share: a frozen model reads trained vectors before each row, and only these are averaged.

``4 n d`` bytes each way for n vectors of width d, besides the new head where there is one to train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from fedge.core.method import Method
from fedge.methods.tuning import Tuning, doc
from fedge.models.anatomy import anatomy
from fedge.models.extras import is_extra
from fedge.models.prompt import STARTS, prompted


@dataclass(frozen=True, kw_only=True)
class Prompts(Tuning):
    """Gradients cross every block whatever is trained, so the variants save rows at once and kept activations alone."""

    tokens: int = field(default=16, metadata=doc("vectors in the prompt"))
    start: str = field(
        default="random",
        metadata=doc("how the vectors begin: drawn, or as words that are drawn", *STARTS),
    )
    head: bool = field(default=True, metadata=doc("train the classifier too; without, the prompt alone moves"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens <= 0:
            raise ValueError(f"tokens must be above 0, not {self.tokens}")
        if self.start not in STARTS:
            raise ValueError(f"start is random or vocabulary, not {self.start!r}")
        if self.depth != 1:
            raise ValueError("a prompt stands before the first block, so depth is 1")

    def variants(self) -> Sequence[Method]:
        lean = replace(self, micro_batch=max(1, self.batch // 4))
        return [self, lean, replace(lean, checkpointing=True), replace(lean, micro_batch=1, checkpointing=True)]

    def build(self, base: nn.Module) -> nn.Module:
        model = self.mark(prompted(base, self.tokens, self.start), lambda name, layer: is_extra(name))
        if not self.head:
            heads = anatomy(model).head_prefixes
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and not name.startswith(heads))
        return model
