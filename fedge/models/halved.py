"""Frozen weights kept in bfloat16: half the memory of what a device only reads, and no arithmetic in bfloat16.

A layer makes float32 numbers of its weights when it runs, forwards and again backwards, and lets go of them, so that at
most one layer's are there at once. That is exact, so results repeat bit for bit on any processor, also on one whose
bfloat16 arithmetic is slow or missing; what it costs is the conversion, which is traced and charged like other work.
The model itself is another one: its frozen matrices are rounded to eight significant bits, about three digits.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from fedge.models.share import storage

_KEPT: WeakKeyDictionary[nn.Module, dict[int, Tensor]] = WeakKeyDictionary()


def halves(base: nn.Module) -> dict[int, Tensor]:
    """The base's matrices in bfloat16, by the identity of the storage of each; made once for a base, and shared by all.

    A process that forks others calls this before, so that they share one copy.
    """
    if base not in _KEPT:
        with torch.no_grad():
            _KEPT[base] = {
                storage(weight): weight.detach().to(torch.bfloat16)
                for weight in (getattr(module, "weight", None) for module in base.modules() if type(module) in _LAYERS)
                if isinstance(weight, nn.Parameter) and weight.dtype == torch.float32
            }
    return _KEPT[base]


def halve(model: nn.Module, base: nn.Module) -> nn.Module:
    """Let what ``model`` does not train and shares with ``base`` lie where ``halves`` has it, in place.

    Only the matrices of linear layers and embeddings; a matrix that another kind of layer reads too stays as it is.
    Returns the model.
    """
    kept = halves(base)
    readers: dict[nn.Parameter, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            readers[parameter].append(module)
    for parameter, modules in readers.items():
        half = None if parameter.requires_grad else kept.get(storage(parameter))
        if half is None or half.shape != parameter.shape:
            continue
        if all(type(module) in _LAYERS and module.weight is parameter for module in modules):
            parameter.data = half
            for module in modules:
                module.__class__ = _LAYERS[type(module)]
    return model


class _Product(torch.autograd.Function):
    """``x Wᵀ + b`` with a frozen ``W`` that is kept as it is given, for the way back too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return functional.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        into = grad @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None
        bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.needs_input_grad[2] else None
        return into, None, bias


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = _Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return found


class _Conv1D(Conv1D):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Product.apply(x, self.weight.t(), self.bias)  # type: ignore[no-untyped-call]
        return found


class _Embedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


_LAYERS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, Conv1D: _Conv1D, nn.Embedding: _Embedding}
