"""Where a transformer looks: the last block's attention from what its head is given, as a map over the tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fedge.errors import MissingError
from fedge.models.anatomy import anatomy


def visible(model: nn.Module) -> nn.Module:
    """Make a model's attention compute its weights one by one, in place, so that ``looked`` sees them; returns it."""
    anatomy(model).core.set_attn_implementation("eager")
    return model


def looked(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The logits of a model made ``visible``, and where it looked: ``[rows, tokens]``, each row from 0 to 1.

    The mean over heads of the last block's attention, of the first token's row or, where the head pools by the mean,
    of all rows that the mask keeps. Raises MissingError for a block that shows no attention.
    """
    with _taken(anatomy(model).layers[-1]) as taken:
        output = model(**inputs)
    if not taken:
        raise MissingError(
            f"the attention of a {type(model).__name__} is not to be seen",
            hint="a method that sends logits alone: fedmd, feddf",
        )
    weights = taken[0].mean(1)  # [rows, from, to]
    if getattr(model, "pooling", "cls") == "mean" and "attention_mask" in inputs:
        kept = inputs["attention_mask"].unsqueeze(-1).to(weights.dtype)
        row = (weights * kept).sum(1) / kept.sum(1).clamp_min(1.0)
    else:
        row = weights[:, 0]
    low, high = row.amin(1, keepdim=True), row.amax(1, keepdim=True)
    return output.logits, (row - low) / (high - low).clamp_min(1e-12)


@contextmanager
def _taken(block: nn.Module) -> Iterator[list[Tensor]]:
    """The attention weights ``[rows, heads, tokens, tokens]`` that pass in a block, as they come."""
    taken: list[Tensor] = []

    def look(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor) and output[1].dim() == 4:
            taken.append(output[1])

    hooks = [module.register_forward_hook(look) for module in block.modules()]
    try:
        yield taken
    finally:
        for hook in hooks:
            hook.remove()
