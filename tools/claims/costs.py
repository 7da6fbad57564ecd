"""What a round of a method costs on models of the papers' sizes: counted and traced, nothing is trained."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from fedge.core.cost import Cost
from fedge.core.method import Method
from fedge.data.rows import Rows
from fedge.models.load import MINILM, load
from fedge.models.names import trainable
from fedge.plan.trace import Setting, trace

#: Rows that a device holds, and their tokens.
ROWS, LENGTH = 64, 64


@cache
def minilm() -> Setting:
    """MiniLM with a head for four classes, and a device's rows; of these only the shapes matter."""
    loaded = load(MINILM, "text-classification", classes=4)
    columns = {
        "input_ids": torch.zeros((ROWS, LENGTH), dtype=torch.int32),
        "attention_mask": torch.ones((ROWS, LENGTH), dtype=torch.uint8),
        "labels": torch.zeros(ROWS, dtype=torch.int64),
    }
    rows = Rows(columns, "text-classification")
    return Setting(loaded.model, loaded.task, rows, public=rows.take(range(32)), cohort=4)


@cache
def on_minilm(method: Method) -> Cost:
    """A round on a device that runs the method as it is written, in the steady state."""
    return trace(method, method, minilm())


@cache
def roberta_numbers(method: Method, classes: int = 2) -> tuple[int, int]:
    """How many numbers a method trains and sends of RoBERTa-base, and how many there are; no weights are needed."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=classes)
    with torch.device("meta"):
        model: nn.Module = RobertaForSequenceClassification(config)
        whole = sum(parameter.numel() for parameter in model.parameters())
        built = method.build(model.requires_grad_(False))
    return sum(parameter.numel() for parameter in trainable(built).values()), whole
