"""Real numbers as integers modulo 2^bits, whose sums are exact: cut off at a range, scaled, rounded at random.

For ``n`` devices a number of at most ``range`` becomes one of at most ``levels = ⌊(2^(bits−1) − 1) / n⌋``, so that no
sum of n of them wraps. ``⌊x / step + u⌋`` with ``u`` uniform in [0, 1) has the mean ``x / step``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DTYPES = {16: torch.int16, 32: torch.int32, 64: torch.int64}
_UNSIGNED = {torch.int16: np.uint16, torch.int32: np.uint32, torch.int64: np.uint64}


@dataclass(frozen=True)
class Ring:
    """``bits`` of a number, ``range`` of what it stands for, and how many are added up."""

    bits: int
    range: float
    count: int

    @property
    def levels(self) -> int:
        # beyond 2^52 a double has no room for a fraction that could be rounded at random
        return min(((1 << (self.bits - 1)) - 1) // self.count, 1 << 52)

    @property
    def step(self) -> float:
        """What one level stands for."""
        return self.range / self.levels

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.bits]

    def rounded(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """The tensor in levels, as float64 whole numbers, not cut off yet."""
        scaled = tensor.to(torch.float64) / self.step
        return (scaled + torch.rand(scaled.shape, generator=generator, dtype=torch.float64)).floor_()

    def cut(self, levels: Tensor) -> Tensor:
        """Whole numbers as the ring's, cut off at its range."""
        return levels.clamp(-self.levels, self.levels).to(self.dtype)

    def real(self, tensor: Tensor) -> Tensor:
        """What a sum in the ring stands for, as float64."""
        return tensor.to(torch.float64) * self.step


def wrapping(tensor: Tensor) -> np.ndarray:
    """The ring's numbers as unsigned ones in the same memory, whose sums wrap."""
    return tensor.numpy().view(_UNSIGNED[tensor.dtype])
