"""Which numbers of a vector are kept: how many, and the largest of them, the same on every machine."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from fedge.core.traced import is_traced


def how_many(fraction: float, size: int) -> int:
    """``⌈fraction · size⌉``, at least one number of any."""
    return min(size, max(1, ceil(fraction * size - 1e-9))) if size else 0


def largest(vector: Tensor, count: int) -> Tensor:
    """Places, ascending, of the ``count`` numbers of largest magnitude; of equal ones the first are taken."""
    magnitude = vector.abs()
    if count >= len(vector):
        return torch.arange(len(vector))
    if is_traced(vector):
        return torch.empty(count, dtype=torch.int64)
    least = torch.topk(magnitude, count, sorted=False).values.min() if count else magnitude.new_tensor(torch.inf)
    above = (magnitude > least).nonzero().reshape(-1)
    equal = (magnitude == least).nonzero().reshape(-1)[: count - len(above)]
    return torch.cat([above, equal]).sort().values


def check_fraction(fraction: float) -> None:
    """Raise ValueError for a share that leaves nothing or more than all."""
    if not 0 < fraction <= 1:
        raise ValueError(f"a share of the numbers is more than 0 and at most 1, not {fraction:g}")
