"""Bottleneck adapters in every block (Houlsby et al. 2019, arXiv 1902.00751), which peft does not have.

``h ← h + U gelu(D h + b_D) + b_U`` with ``D [width, hidden]``, ``U [hidden, width]``, after the projection that ends a
sublayer and before the residual sum. The module that holds an adapter keeps its weight and bias under their own names,
and the adapter's tensors are called ``<module>.adapter.down.weight``, ``….down.bias``, ``….up.weight``, ``….up.bias``:
names that fedge keeps, since no other program has any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.errors import MissingError
from fedge.models import extras
from fedge.models.anatomy import anatomy
from fedge.models.around import put

#: Backbone class, and inside a block the projections that end its attention and its feed-forward sublayer.
SUBLAYERS = {
    "ViTModel": ("attention.o_proj", "mlp.fc2"),
    "BertModel": ("attention.output.dense", "output.dense"),
    "RobertaModel": ("attention.output.dense", "output.dense"),
    "XLMRobertaModel": ("attention.output.dense", "output.dense"),
    "DistilBertModel": ("attention.out_lin", "ffn.lin2"),
    "MPNetModel": ("attention.attn.o", "output.dense"),
    "GPT2Model": ("attn.c_proj", "mlp.c_proj"),
    "LlamaModel": ("self_attn.o_proj", "mlp.down_proj"),
}
#: Where adapters go: after both sublayers of each block, after the second (Pfeiffer), or before the last layer alone.
PLACES = ("both", "output", "head")
#: Standard deviation of D; U starts at zero, so an adapter changes nothing at first.
SPREAD = 0.01


class Bottleneck(nn.Module):
    """``h + U gelu(D h + b_D) + b_U`` for ``h [..., hidden]``."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.down = nn.Linear(hidden, width)
        self.up = nn.Linear(width, hidden)
        nn.init.normal_(self.down.weight, std=SPREAD)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, hidden: Tensor) -> Tensor:
        change: Tensor = self.up(functional.gelu(self.down(hidden)))
        return hidden + change


class Adapted(nn.Module):
    """A linear layer with an adapter after it, or before it; weight and bias are the layer's own."""

    def __init__(self, layer: Any, width: int, *, before: bool = False):
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        #: GPT-2 stores its weights transposed.
        self.transposed = type(layer).__name__ == "Conv1D"
        self.before = before
        inside, outside = self.weight.shape if self.transposed else reversed(self.weight.shape)
        self.in_features, self.out_features = int(inside), int(outside)
        self.adapter = Bottleneck(self.in_features if before else self.out_features, width)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.before:
            inputs = self.adapter(inputs)
        out = functional.linear(inputs, self.weight.T if self.transposed else self.weight, self.bias)
        return out if self.before else self.adapter(out)


def insert(model: nn.Module, width: int, place: str = "both") -> nn.Module:
    """Put adapters onto the model, in place; returns the model.

    ``place``: one of ``PLACES``. D is drawn from torch's global state, in the order of the blocks. A model that holds
    adapters already is returned as it is. Raises MissingError for a model whose blocks or last layer are not known.
    """
    if any(isinstance(module, Adapted) for module in model.modules()):
        return model
    for name in _targets(model, place):
        layer: Any = model.get_submodule(name)
        with torch.device(layer.weight.device):
            made = Adapted(layer, width, before=place == "head")
        put(model, name, made.to(layer.weight.dtype))
    return extras.note(model, "adapters", width=width, place=place)


def _targets(model: nn.Module, place: str) -> Sequence[str]:
    from fedge.models.features import classifier

    if place == "head":
        return [classifier(model)[0]]
    parts = anatomy(model)
    kind = type(parts.core).__name__
    if kind not in SUBLAYERS:
        raise MissingError(f"where the sublayers of a {kind} end is not known to fedge")
    inner = SUBLAYERS[kind] if place == "both" else SUBLAYERS[kind][1:]
    return [prefix + name for prefix in parts.layer_prefixes for name in inner]
