"""Paying first-time costs before they count: lazily loaded code, the first optimizer, a process's first products.

A zygote that has trained tiny models, whole and with adapters, spares each device some 12 MB and over a second; a
device that trains them again before its baseline is read leaves the baseline the same for all methods. The sizes are
small on purpose: a larger warm-up leaves blocks behind that later allocations fall into, and the baseline wanders.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import nn

from fedge.core.fit import fit
from fedge.core.task import Task
from fedge.models.lora import inject

#: Bytes by which a device's own count exceeds what its tensors explain, in the middle of what was seen.
UNEXPLAINED = 768 << 10


def warm(*, parent: bool) -> None:
    """Train the warm-up models; a parent does the tiny ones too, and then freezes what it holds."""
    for hidden in (16, None) if parent else (None,):
        for adapters in (False, True):
            _train(_vit(hidden or 64), _images(), adapters)
            _train(_bert(hidden or 256), _tokens(), adapters)
    if parent:
        # recomputing activations loads code of its own, which a device would otherwise be charged for
        recomputing: Any = _vit(16)
        recomputing.activation_checkpointing_enable()
        _train(recomputing, _images(), adapters=True)
    gc.collect()
    if parent:
        gc.freeze()


def small_step() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model and a batch of the warm-up, for measuring how long a step takes."""
    return _vit(64), _images()


def _train(model: nn.Module, batch: dict[str, torch.Tensor], adapters: bool) -> None:
    if adapters:
        model = inject(model.requires_grad_(False), rank=2, alpha=4.0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fit(
        model,
        [batch, batch],
        loss=Task("image-classification", 4).loss,
        optimizer=torch.optim.AdamW(parameters, lr=1e-3),
        steps=2,
    )


def _vit(hidden: int) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**_sizes(hidden), image_size=8, patch_size=2, num_channels=1))


def _bert(hidden: int) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**_sizes(hidden), vocab_size=50, max_position_embeddings=32))


def _sizes(hidden: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
        "num_labels": 4,
    }


def _images() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.zeros(4, 1, 8, 8), "labels": torch.zeros(4, dtype=torch.int64)}


def _tokens() -> dict[str, torch.Tensor]:
    tokens = torch.ones(4, 16, dtype=torch.int64)
    return {"input_ids": tokens, "attention_mask": tokens.clone(), "labels": torch.zeros(4, dtype=torch.int64)}
