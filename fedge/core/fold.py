"""Folding of devices' tensors into one: weighted means, also where devices cover different parts.

Replies are folded in the order in which they are given, which the coordinator makes device-id order, so that two runs
give the same bits whatever the order of arrival.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fedge.core.payload import Tree
from fedge.errors import MethodError


class Coverage:
    """The mean of each coordinate over those who sent it: ``w[i] = Σ_{k covers i} a_k w_k[i] / Σ_{k covers i} a_k``.

    A reply may lack tensors, and a tensor may be a leading block of the full one (a device that trained the first r
    of R rank slots sends ``[r, in]`` for ``[R, in]``). Replies are added one at a time and can be dropped after, so
    memory does not grow with their number.
    """

    def __init__(self, shapes: dict[str, torch.Size]):
        """``shapes``: the full shape of every tensor that may come."""
        self._shapes = shapes
        self._sums: Tree = {}
        self._totals: dict[str, float | Tensor] = {}

    def add(self, weight: float, tree: Tree) -> None:
        """Fold in one device's tensors with its weight."""
        for name, tensor in tree.items():
            full = self._shapes.get(name)
            if full is None:
                raise MethodError(f"a device sent '{name}', which the server does not hold")
            if len(full) != tensor.dim() or any(a > b for a, b in zip(tensor.shape, full, strict=True)):
                raise MethodError(f"a device sent '{name}' of shape {list(tensor.shape)} for {list(full)}")
            self._add(name, full, weight, tensor)

    def _add(self, name: str, full: torch.Size, weight: float, tensor: Tensor) -> None:
        if name not in self._sums:
            self._sums[name] = torch.zeros(full, dtype=torch.promote_types(tensor.dtype, torch.float32))
            self._totals[name] = 0.0
        block = tuple(slice(0, size) for size in tensor.shape)
        self._sums[name][block].add_(tensor, alpha=weight)
        total = self._totals[name]
        if tensor.shape == full:
            self._totals[name] = total + weight
        else:
            if not isinstance(total, Tensor):
                total = torch.full(full, total)
            total[block] += weight
            self._totals[name] = total

    def mean(self) -> tuple[Tree, dict[str, Tensor]]:
        """The means (zero where nobody covered), and for tensors covered in part the mask of what was covered."""
        means: Tree = {}
        covered: dict[str, Tensor] = {}
        for name, sums in self._sums.items():
            total = self._totals[name]
            if isinstance(total, Tensor):
                means[name] = sums / total.clamp_min(torch.finfo(total.dtype).tiny)
                covered[name] = total > 0
            elif total > 0:
                means[name] = sums / total
        return means, covered


def weighted_mean(replies: Iterable[tuple[float, Tree]]) -> Tree:
    """``Σ a_k w_k / Σ a_k`` over replies that all hold the same tensors."""
    sums: Tree = {}
    total = 0.0
    for weight, tree in replies:
        total += weight
        for name, tensor in tree.items():
            if name in sums:
                sums[name].add_(tensor, alpha=weight)
            else:
                sums[name] = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * weight
    if total <= 0:
        raise MethodError("a mean over replies whose weights add up to nothing")
    return {name: tensor / total for name, tensor in sums.items()}
