"""Noise for prefix sums: a binary tree over rounds (Kairouz et al. 2021, arXiv 2103.00039, DP-FTRL's algorithm).

A node of level l stands for ``2^l`` rounds and has noise of its own; the sum of the first t rounds gets the noise of
the nodes that cover them, one for each bit of t that is set: a variance of ``popcount(t) σ²`` rather than ``t σ²``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedge.core.payload import Tree

#: The nodes that cover the rounds so far, by level.
Nodes = dict[str, Tree]


def advance(nodes: Mapping[str, Tree], step: int, fresh: Callable[[int], Tree]) -> tuple[Nodes, Tree]:
    """The nodes after round ``step`` (from 1) of a tree, and by how much the noise of the prefix sum has changed.

    ``nodes``: those after the round before, empty for the first. ``fresh(level)`` draws a node's noise; a tree never
    asks twice for the same node.
    """
    level = (step & -step).bit_length() - 1
    new = fresh(level)
    ended = [tree for at, tree in nodes.items() if int(at) < level]
    change = dict(new)
    for tree in ended:
        for name, noise in tree.items():
            change[name] = change[name] - noise if name in change else -noise
    kept = {at: tree for at, tree in nodes.items() if int(at) > level}
    return {**kept, str(level): new}, change
