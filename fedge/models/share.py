"""Copies of a model that share its memory, and the moment at which a copy gets memory of its own."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn


def share(model: nn.Module) -> nn.Module:
    """A deep copy of the model's structure whose parameters and buffers alias the original's storage.

    Parameters are new objects with ``requires_grad`` False, tied ones stay tied, and writing to one of them writes to
    the original: call ``own`` once it is known which will be trained. Works on meta and fake tensors.
    """
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        # .data rather than .detach(): a copy that is trained must not count as a change of its original to autograd
        memo[id(parameter)] = nn.Parameter(parameter.data, requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach()
    return copy.deepcopy(model, memo)


def own(model: nn.Module, base_storages: Collection[int] | None = None, *, buffers: bool = False) -> nn.Module:
    """Give each parameter that requires a gradient memory of its own, in place; returns the model.

    ``base_storages``: only those that lie in one of these storages (``storages(base)``) are copied; None copies all.
    ``buffers``: floating-point persistent buffers too. Parameter objects stay the same, so ties and optimizers hold.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            _own(parameter, base_storages)
    if buffers:
        kept = persistent_buffers(model)
        for buffer in kept.values():
            if buffer.is_floating_point():
                _own(buffer, base_storages)
    return model


def storages(model: nn.Module) -> frozenset[int]:
    """Identities of the storages in which the model's parameters and buffers lie, valid while the model lives."""
    return frozenset(storage(tensor) for tensor in (*model.parameters(), *model.buffers()))


def storage(tensor: Tensor) -> int:
    """The identity of a tensor's storage; tensors that alias each other have the same (meta and fake ones too)."""
    return int(tensor.untyped_storage()._cdata)


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to the state dict, by name, each once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is None or name in module._non_persistent_buffers_set or id(buffer) in seen:
                continue
            seen.add(id(buffer))
            found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def _own(tensor: Tensor, base_storages: Collection[int] | None) -> None:
    if base_storages is None or storage(tensor) in base_storages:
        with torch.no_grad():
            tensor.data = tensor.detach().clone()
