"""Payload names: what a tensor is called outside this process.

A base model's tensor keeps its state-dict name; an adapter's is called as in peft's own files
(``base_model.model.<module>.lora_A.weight``). Where a module holds an adapter in two pieces, the slots that are trained
(``TRAINED``) and those that only run (``RESTING``), they are one tensor outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fedge.errors import MethodError, nearest
from fedge.models.share import persistent_buffers

#: Names of the adapters inside peft's layers.
TRAINED = "default"
RESTING = "rest"
#: What stands before a module's name in the names of its adapter.
ADAPTER_PREFIX = "base_model.model."

_WRAPPING = ("base_layer", "modules_to_save")
_ADAPTER_MARK = "lora_"


def canonical(name: str) -> str:
    """The payload name of a parameter or buffer of this process's module tree."""
    parts = name.split(".")
    adapter = any(part.startswith(_ADAPTER_MARK) for part in parts)
    kept, previous = [], ""
    for part in parts:
        inner = previous.startswith(_ADAPTER_MARK) or previous == "modules_to_save"
        if part not in _WRAPPING and not (inner and part in (TRAINED, RESTING)):
            kept.append(part)
        previous = part
    return (ADAPTER_PREFIX if adapter else "") + ".".join(kept)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by payload name, tied ones once, in the order of the module tree."""
    return {
        canonical(name): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not _original(name)
    }


def tensors(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Parameters and persistent buffers by payload name, detached and not copied; all, or those that are named.

    An adapter in two pieces is put together, which copies it. Raises MethodError for a name that isn't there.
    """
    pieces = _pieces(model)
    wanted = list(pieces) if names is None else list(names)
    return {name: _joined(name, pieces.get(name) or _unknown(name, pieces)) for name in wanted}


def load(model: nn.Module, tree: Mapping[str, Tensor]) -> None:
    """Copy tensors by payload name into the model.

    A whole adapter tensor is split over its two pieces; one of the trained piece's shape goes to that piece alone.
    Raises MethodError for an unknown name or a wrong shape, before anything is written.
    """
    with torch.no_grad():
        for target, source in _all_moves(model, tree):
            target.copy_(source)


def attach(model: nn.Module, tree: Mapping[str, Tensor]) -> None:
    """As ``load``, but what is not trained comes to lie where the given tensor lies.

    So nothing that the model shares with others is written, and what is only run takes no memory twice.
    """
    with torch.no_grad():
        for target, source in _all_moves(model, tree):
            if target.requires_grad:
                target.copy_(source)
            else:
                target.data = source.to(target.dtype)


def _pieces(model: nn.Module) -> dict[str, list[Tensor]]:
    """Every payload name with the one or two tensors that make it up, the trained piece first."""
    found: dict[str, list[Tensor]] = {}
    for name, tensor in (*model.named_parameters(), *persistent_buffers(model).items()):
        if _original(name):
            continue
        pieces = found.setdefault(canonical(name), [])
        pieces.append(tensor) if RESTING in name.split(".") else pieces.insert(0, tensor)
    return found


def _original(name: str) -> bool:
    """Whether this is peft's untouched spare of a module that it has replaced."""
    return "original_module" in name.split(".")


def _axis(name: str) -> int:
    return 1 if ".lora_B." in name or ".lora_embedding_B." in name else 0


def _joined(name: str, pieces: list[Tensor]) -> Tensor:
    return pieces[0].detach() if len(pieces) == 1 else torch.cat([p.detach() for p in pieces], dim=_axis(name))


def _all_moves(model: nn.Module, tree: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    pieces = _pieces(model)
    return [
        move
        for name, tensor in tree.items()
        for move in _moves(name, tensor, pieces.get(name) or _unknown(name, pieces))
    ]


def _moves(name: str, tensor: Tensor, pieces: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    if tensor.shape == pieces[0].shape:
        return [(pieces[0], tensor)]
    axis = _axis(name)
    sizes = [piece.shape[axis] for piece in pieces]
    whole = list(pieces[0].shape)
    if whole:
        whole[axis] = sum(sizes)
    if len(pieces) == 1 or list(tensor.shape) != whole:
        raise MethodError(f"tensor '{name}' has shape {list(tensor.shape)} where the model has {whole}")
    return list(zip(pieces, tensor.split(sizes, dim=axis), strict=True))


def _unknown(name: str, known: Iterable[str]) -> list[Tensor]:
    raise MethodError(f"the model has no tensor '{name}'", hint=nearest(name, known))
