"""Stochastic binary masks over frozen weights: ``w ⊙ m`` with ``m ~ Bern(σ(s))`` drawn anew in every forward pass.

The scores ``s`` stand beside the weight that they mask, in the same module, under its name and ``_scores``; they are
trained by the straight-through estimate ``∂m/∂s = σ(s)(1 − σ(s))``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedge.core.fit import Batch, Loss
from fedge.core.payload import Tree
from fedge.errors import MethodError

SUFFIX = "_scores"
#: Probabilities are kept within these, so that their scores are finite.
LEAST, MOST = 0.01, 0.99


def layers(model: nn.Module, prefixes: Sequence[str] | None = None) -> dict[str, Any]:
    """The linear and convolutional layers by name, those under one of the prefixes (None: all); tied ones left out."""
    held: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                held[id(parameter)] = held.get(id(parameter), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, (nn.Linear, nn.Conv2d)) or type(module).__name__ == "Conv1D")
        and (prefixes is None or name.startswith(tuple(prefixes)))
        and held[id(module.weight)] == 1
    }


def score(model: nn.Module, names: Sequence[str], start: Callable[[Tensor], Tensor]) -> None:
    """Put scores beside the named tensors, begun as ``start(tensor)``; those that are there stay."""
    for name in names:
        owner, _, child = name.rpartition(".")
        module = model.get_submodule(owner)
        if child + SUFFIX not in module._parameters:
            module.register_parameter(child + SUFFIX, nn.Parameter(start(module._parameters[child])))  # type: ignore[arg-type]


def scores(model: nn.Module) -> dict[str, nn.Parameter]:
    """The scores by the name of the tensor that they mask. Raises MethodError where there are none."""
    found = {n.removesuffix(SUFFIX): p for n, p in model.named_parameters() if n.endswith(SUFFIX)}
    if not found:
        raise MethodError(f"nothing of this {type(model).__name__} is masked")
    return found


def load(model: nn.Module, probabilities: Mapping[str, Tensor]) -> None:
    """Set scores to the logits of probabilities in (0, 1), by the name of what they mask."""
    own = scores(model)
    with torch.no_grad():
        for name, theta in probabilities.items():
            own[name].copy_(torch.logit(theta))


@torch.no_grad()
def probabilities(model: nn.Module) -> Tree:
    """``σ(s)`` by the name of what they mask."""
    return {name: torch.sigmoid(parameter) for name, parameter in scores(model).items()}


def through_masks(loss: Loss) -> Loss:
    """The loss of a model whose masked tensors are drawn for each call, from torch's global state."""

    def masked(model: nn.Module, batch: Batch) -> Tensor:
        held = dict(model.named_parameters())
        weights = {name: held[name] * drawn(s) for name, s in scores(model).items()}
        return loss(lambda **inputs: functional_call(model, weights, (), inputs), batch)  # type: ignore[arg-type]

    return masked


def drawn(s: Tensor) -> Tensor:
    """``m ~ Bern(σ(s))``, with the gradient of ``σ(s)``."""
    theta = torch.sigmoid(s)
    return torch.bernoulli(theta.detach()) + (theta - theta.detach())


@torch.no_grad()
def settle(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """The model with its weights masked for good and no scores left; parameters are replaced, none is written."""
    for name, parameter in scores(model).items():
        owner, _, child = name.rpartition(".")
        module = model.get_submodule(owner)
        weight = module._parameters[child]
        assert weight is not None
        kept = masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
        module._parameters[child] = nn.Parameter(torch.where(kept, weight, torch.zeros_like(weight)), False)
        del module._parameters[child + SUFFIX]
    return model


def pack(mask: Tensor) -> Tensor:
    """Bits as ``⌈n / 8⌉`` bytes, the first bit the most significant of the first byte."""
    flat = mask.reshape(-1).to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).reshape(-1, 8)
    out = torch.zeros(len(flat), dtype=torch.uint8)
    for place in range(8):
        out |= flat[:, place] << (7 - place)
    return out


def unpack(data: Tensor, shape: torch.Size) -> Tensor:
    """The bits that ``pack`` packed. Raises MethodError for another number of bytes."""
    if data.dtype != torch.uint8 or data.shape != (-(-shape.numel() // 8),):
        raise MethodError(f"{list(data.shape)} bytes are no mask of {shape.numel()} weights")
    bits = torch.stack([(data >> (7 - place)) & 1 for place in range(8)], 1)
    return bits.reshape(-1)[: shape.numel()].reshape(shape).bool()
