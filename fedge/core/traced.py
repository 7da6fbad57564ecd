"""Telling a tensor of a plan, which has a shape and no numbers, from a real one."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_traced(*tensors: Tensor) -> bool:
    """Whether one of the tensors has no numbers, because a round is only being planned."""
    return any(isinstance(tensor, FakeTensor) for tensor in tensors)
