"""Vectors in blocks that have a scale each, so that one large number does not coarsen all the others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedge.core.payload import Tree


def blocked(tensor: Tensor, block: int) -> Tensor:
    """A tensor's numbers as float32 [⌈n / block⌉, block], the last row filled with zeros."""
    flat = tensor.reshape(-1).float()
    return pad(flat, (0, -len(flat) % block)).reshape(-1, block)


def scale_of_each(tree: Tree, scales: Tensor, block: int) -> Tensor:
    """The scale [n] of each number of all tensors, from one scale a block; blocks don't cross tensors."""
    spread, first = [torch.empty(0)], 0
    for tensor in tree.values():
        count = -(-tensor.numel() // block)
        spread.append(scales[first : first + count].repeat_interleave(block)[: tensor.numel()])
        first += count
    return torch.cat(spread)


def how_many_blocks(tree: Tree, block: int) -> int:
    return sum(-(-tensor.numel() // block) for tensor in tree.values())


def check_block(block: int) -> None:
    """Raise ValueError for a block without numbers."""
    if block < 1:
        raise ValueError(f"block must be 1 or more, not {block}")
