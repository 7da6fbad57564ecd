"""A text classifier out of an encoder that has no classification head: pooling and one linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

POOLINGS = ("mean", "cls")


class PooledClassifier(nn.Module):
    """An encoder, its token vectors pooled into one, and a linear classifier.

    ``pooling``: 'mean' over the tokens that the attention mask keeps, or 'cls', the first token's vector.
    ``labels``: the names of the classes, if they have some. The classifier is drawn from torch's global state.
    """

    def __init__(self, encoder: Any, classes: int, *, pooling: str = "mean", labels: list[str] | None = None):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling '{pooling}' is not one of {', '.join(POOLINGS)}")
        self.encoder: nn.Module = encoder
        self.pooling = pooling
        self.config: Any = encoder.config
        names = labels or [f"LABEL_{index}" for index in range(classes)]
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: index for index, name in enumerate(names)}
        self.classifier = nn.Linear(self.config.hidden_size, classes)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Logits ``[rows, classes]`` for token ids, mask and types, each ``[rows, tokens]``."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        hidden = self.encoder(**inputs).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(self.pool(hidden, attention_mask)))

    def pool(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Token vectors ``[rows, tokens, width]`` to row vectors ``[rows, width]``."""
        if self.pooling == "cls":
            return hidden[:, 0]
        if attention_mask is None:
            return hidden.mean(1)
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        # the floor keeps a row without any token at zero instead of not-a-number
        return (hidden * weights).sum(1) / torch.clamp(weights.sum(1), min=1e-9)
