"""What enters a model's last linear layer, and that layer: for heads that are computed rather than trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedge.errors import MissingError
from fedge.models.anatomy import anatomy


def classifier(model: nn.Module) -> tuple[str, nn.Linear]:
    """The model's last linear layer and its name. Raises MissingError for a model whose head does not end in one."""
    heads = anatomy(model).head_prefixes
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and f"{n}.".startswith(heads)]
    if not heads or not found:
        raise MissingError(
            f"the head of a {type(model).__name__} does not end in a linear layer",
            hint="a head can be computed for classifiers alone; 'head' and 'lora' train one",
        )
    return found[-1]


@torch.no_grad()
def features(model: nn.Module, inputs: Mapping[str, Tensor], into: nn.Module | None = None) -> Tensor:
    """What enters the last linear layer (or ``into``), ``[rows, width]``, without dropout."""
    return entering(model.eval(), inputs, into)[0]


def entering(model: nn.Module, inputs: Mapping[str, Tensor], into: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """What enters the last linear layer (or ``into``), ``[rows, width]``, and the logits, with their gradients."""
    taken: list[Tensor] = []
    into = into or classifier(model)[1]
    look = into.register_forward_pre_hook(lambda module, given: taken.append(given[0]))
    try:
        output = model(**inputs)
    finally:
        look.remove()
    return taken[0], output if isinstance(output, Tensor) else output.logits
