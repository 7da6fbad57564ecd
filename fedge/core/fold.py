"""Folding of devices' tensors into one: weighted means, also where devices cover different parts, and sums of products.

Replies are folded in the order in which they are given, which the coordinator makes device-id order, so that two runs
give the same bits whatever the order of arrival.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fedge.core.payload import Tree
from fedge.errors import MethodError

#: The factors of one low-rank matrix ``B A``: ``A [rank, in]`` and ``B [out, rank]``.
Pair = tuple[Tensor, Tensor]


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
                total = torch.full(full, total, dtype=self._sums[name].dtype)
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


def stacked(terms: Iterable[tuple[float, Pair]]) -> Pair:
    """``Σ w_k B_k A_k`` without any error, as factors whose rank is the sum of the terms' (FLoRA, arXiv 2409.05976).

    The weight goes onto A alone: on both factors it would count squared.
    """
    held = list(terms)
    return torch.cat([a * weight for weight, (a, _) in held]), torch.cat([b for _, (_, b) in held], dim=1)


def covariance(terms: Sequence[tuple[float, Pair]]) -> Pair | None:
    """``Σ p_k B_k A_k − B̄ Ā`` with ``p_k = w_k / Σ w``: by what the mean of factors misses the mean of products.

    As factors of rank ``(K−1) r``: since ``Σ p_k (B_k − B̄) = 0``, it is ``Σ_{k<K} p_k (B_k − B̄)(A_k − A_K)``. None for
    a single term, which misses nothing. All terms have one rank.
    """
    total = sum(weight for weight, _ in terms)
    last, _ = terms[-1][1]
    mean = sum(b * (weight / total) for weight, (_, b) in terms)
    rest = [(weight / total, (a - last, b - mean)) for weight, (a, b) in terms[:-1]]
    return stacked(rest) if rest else None


def refactored(pair: Pair, rank: int | None = None) -> Pair:
    """The best approximation of ``B A`` of a rank (None: itself), slots in the order of their singular values.

    ``A`` gets orthonormal rows and ``B`` the singular values. By QR of both factors and an SVD no larger than their
    rank, in float64; the same as an SVD of the dense product. There are ``min(rank, out, in)`` slots at most.
    """
    a, b = (factor.to(torch.float64) for factor in pair)
    left, upper = torch.linalg.qr(b)
    right, lower = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    new_a, new_b = (vh[:rank] @ right.T), left @ (u[:, :rank] * s[:rank])
    return new_a.to(pair[0].dtype), new_b.to(pair[1].dtype)


def padded(pair: Pair, rank: int) -> Pair:
    """The same product at a higher rank: the further slots are zero."""
    (a, b), more = pair, rank - len(pair[0])
    if not more:
        return pair
    return torch.cat([a, a.new_zeros(more, a.shape[1])]), torch.cat([b, b.new_zeros(len(b), more)], dim=1)


def product_norm(pair: Pair) -> Tensor:
    """``‖B A‖_F`` without the product: ``‖BA‖² = trace((BᵀB)(AAᵀ))``."""
    a, b = pair
    return ((b.T @ b) * (a @ a.T)).sum().clamp_min(0).sqrt()
