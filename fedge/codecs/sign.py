"""EF-sign: one bit a number and each tensor's mean magnitude (Karimireddy et al. 2019, arXiv 1901.09847, alg. 1).

``C(p) = ‖p‖₁/d · sign(p)`` with ``sign(0) = +1``: a contraction with ``δ = ‖p‖₁² / (d ‖p‖₂²)``, so what it leaves over
must be fed back. ``⌈d/8⌉`` bytes and four for each tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedge.codecs import bits
from fedge.codecs.codec import CHANGES, Codec, Meta, blank, blanks, cut, floats, joined, listed, rest, total
from fedge.core.fields import doc
from fedge.core.method import State
from fedge.core.payload import Tree


@dataclass(frozen=True, kw_only=True)
class Sign(Codec):
    """Signs, and the mean magnitude of each tensor."""

    feedback: bool = field(default=True, metadata=doc("what is rounded off is added to the next message"))

    key: ClassVar[str] = "sign"
    roles: ClassVar[tuple[str, ...]] = CHANGES
    steps: ClassVar[tuple[str, ...]] = ("quantise",)
    summary: ClassVar[str] = "one bit a number and each tensor's mean magnitude, the error fed back"
    paper: ClassVar[str] = "Karimireddy et al. 2019, arXiv 1901.09847"

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        mine = floats(tree)
        means = [tensor.float().abs().mean() if tensor.numel() else torch.zeros(()) for tensor in mine.values()]
        own = {
            self.name("signs"): bits.pack(joined(mine, torch.float32) < 0, 1),
            self.name("scales"): torch.stack(means) if means else torch.empty(0),
        }
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        mine, tree = blanks(meta["of"]), dict(tree)
        scales = spread(tree.pop(self.name("scales")), mine)
        return {**cut(signs(tree.pop(self.name("signs")), mine) * scales, mine), **tree}

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        mine = floats(tree)
        own = {
            self.name("signs"): blank(torch.uint8, bits.nbytes(total(mine), 1)),
            self.name("scales"): blank(torch.float32, len(mine)),
        }
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}


def signs(data: Tensor, mine: Tree) -> Tensor:
    """``±1`` for each number of all tensors, from bits that say which are negative."""
    return 1 - 2 * bits.unpack(data, 1, total(mine))


def spread(scales: Tensor, mine: Tree) -> Tensor:
    """Each tensor's scale for each of its numbers."""
    return scales.repeat_interleave(torch.tensor([tensor.numel() for tensor in mine.values()], dtype=torch.int64))
