"""Matrices as two thin factors: which tensors, and the factors of all of them in one vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedge.codecs.codec import Meta, blank, blanks, floats, listed, rest
from fedge.core.payload import Tree

#: The factors ``P [p, r]`` and ``Q [q, r]`` of a matrix ``[p, q]`` that stands under a name.
Factor = Callable[[str, Tensor], tuple[Tensor, Tensor]]


def matrices(tree: Tree, rank: int) -> Tree:
    """Floating-point tensors of two or more dimensions whose factors are fewer numbers than they are."""
    return {name: t for name, t in floats(tree).items() if t.dim() > 1 and rank * sum(sides(t)) < t.numel()}


def sides(tensor: Tensor) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix: its first dimension against all the others."""
    return tensor.shape[0], tensor.numel() // tensor.shape[0]


def factored(tree: Tree, rank: int, name: str, factor: Factor) -> tuple[Tree, Meta]:
    """The tree with the factors of all matrices in one vector called ``name``."""
    mine = matrices(tree, rank)
    flat = [torch.empty(0)]
    for key, tensor in mine.items():
        flat += [side.reshape(-1) for side in factor(key, tensor.float().reshape(sides(tensor)))]
    return {name: torch.cat(flat), **rest(tree, mine)}, {"of": listed(mine)}


def multiplied(tree: Tree, rank: int, name: str, meta: Meta) -> Tree:
    """The tree with the products in the factors' place."""
    tree, out, first = dict(tree), {}, 0
    factors = tree.pop(name)
    for key, tensor in blanks(meta["of"]).items():
        p, q = sides(tensor)
        left, right = torch.split(factors[first : first + rank * (p + q)], [rank * p, rank * q])
        out[key] = (left.reshape(p, rank) @ right.reshape(q, rank).T).reshape(tensor.shape).to(tensor.dtype)
        first += rank * (p + q)
    return {**out, **tree}


def outlined(tree: Tree, rank: int, name: str) -> tuple[Tree, Meta]:
    mine = matrices(tree, rank)
    numbers = sum(rank * sum(sides(tensor)) for tensor in mine.values())
    return {name: blank(torch.float32, numbers), **rest(tree, mine)}, {"of": listed(mine)}


def check_rank(rank: int) -> None:
    """Raise ValueError for a rank that leaves nothing."""
    if rank < 1:
        raise ValueError(f"rank must be 1 or more, not {rank}")
