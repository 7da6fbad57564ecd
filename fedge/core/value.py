"""Reading a tensor's value where a method must decide something by it, which a trace on fake tensors can't do."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def value(tensor: Tensor, *, traced: float) -> float:
    """The number in a 0-d tensor; ``traced`` while tensors are faked, so that the planner's round has one outcome.

    Choose for ``traced`` what makes the round as dear as it gets.
    """
    return traced if isinstance(tensor, FakeTensor) else float(tensor)
