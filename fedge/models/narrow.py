"""A model of smaller width: of every tensor the leading block (attention heads and neurons that come first)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fedge.errors import MissingError
from fedge.models.exits import MultiExit
from fedge.models.pooled import PooledClassifier


def narrowed(model: MultiExit, ratio: float) -> MultiExit:
    """A multi-exit model with ``ratio`` of the attention heads (at least one), and hidden state and feed-forward layers
    narrower alike. Tensors whose leading block lies in one piece share the model's memory.

    MissingError for an architecture whose tensors can't be cut so (queries, keys and values joined in one).
    """
    parts = model.parts
    if type(parts).__name__ in ("_GPT2", "_Llama"):
        raise MissingError(f"the width of a {type(model.base).__name__} can't be cut", hint="joint trains its exits")
    config = copy.deepcopy(parts.config)
    head = config.hidden_size // config.num_attention_heads
    config.num_attention_heads = max(1, round(ratio * config.num_attention_heads))
    config.hidden_size = head * config.num_attention_heads
    config.intermediate_size = max(1, round(ratio * config.intermediate_size))
    with torch.device("meta"):
        thin = MultiExit(_empty(model.base, config), model.points, model.classes, headless=model.headless)
    wide = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for prefix, module in thin.named_modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    block = leading(wide[f"{prefix}.{name}" if prefix else name].detach(), tensor.shape).contiguous()
                    held[name] = nn.Parameter(block, False) if held is module._parameters else block  # type: ignore[assignment]
    return thin.train(model.training)


def leading(tensor: Tensor, shape: Any) -> Tensor:
    """The leading block of a shape."""
    return tensor[tuple(slice(0, size) for size in shape)]


def _empty(base: nn.Module, config: Any) -> nn.Module:
    if isinstance(base, PooledClassifier):
        encoder: Any = base.encoder
        return PooledClassifier(type(encoder)(config), len(base.config.id2label), pooling=base.pooling)
    made: Any = type(base)
    found: nn.Module = made(config)
    return found
