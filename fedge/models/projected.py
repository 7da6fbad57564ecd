"""A projection in the place of a model's last layer: ``z = V relu(U x)``, and classes told from z.

By a linear layer (MOON), or by the cosine between z and a vector for each class (prototypes).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.models import extras
from fedge.models.around import put
from fedge.models.features import classifier


class _Parts(nn.Module):
    """Under one name, which marks what is none of the base's."""

    def __init__(self, inside: int, width: int, classes: int):
        super().__init__()
        self.first = nn.Linear(inside, inside)
        self.second = nn.Linear(inside, width)
        self.last = nn.Linear(width, classes)


class Projected(nn.Module):
    """``x [..., inside]`` to logits ``[..., classes]``.

    ``temperature``: None for a linear classifier of z; else logits are cosines to the rows of its weight divided by it,
    plus its bias.
    """

    def __init__(self, inside: int, width: int, classes: int, temperature: float | None):
        super().__init__()
        self.projected = _Parts(inside, width, classes)
        self.temperature = temperature

    def project(self, inputs: Tensor) -> Tensor:
        """z, of unit length where cosines are taken."""
        found: Tensor = self.projected.second(functional.relu(self.projected.first(inputs)))
        return found if self.temperature is None else functional.normalize(found, dim=-1)

    def forward(self, inputs: Tensor) -> Tensor:
        z, last = self.project(inputs), self.projected.last
        if self.temperature is None:
            logits: Tensor = last(z)
            return logits
        return functional.linear(z, functional.normalize(last.weight, dim=-1) / self.temperature, last.bias)


def project(model: nn.Module, width: int, temperature: float | None = None) -> nn.Module:
    """Put a projection of ``width`` numbers in the place of the last layer, in place; returns the model.

    It is drawn from torch's global state. A model that has one is returned as it is. MissingError for a model whose
    head does not end in a linear layer.
    """
    if any(isinstance(module, Projected) for module in model.modules()):
        return model
    name, last = classifier(model)
    with torch.device(last.weight.device):
        made = Projected(last.in_features, width, last.out_features, temperature)
    put(model, name, made.to(last.weight.dtype))
    return extras.note(model, "projection", width=width, temperature=temperature)


def projection_of(model: nn.Module) -> Projected:
    """The projection that ``project`` put into the model."""
    return next(module for module in model.modules() if isinstance(module, Projected))
