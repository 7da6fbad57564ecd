"""Random-k: a random share of the numbers is sent; their places cost eight bytes, the seed that draws them again.

Scaled by ``d/k`` it is unbiased with ``E‖C(x) − x‖² = (d/k − 1) ‖x‖²`` (Wangni et al. 2018). With error feedback the
numbers go unscaled: a scaled one is no contraction, and what it leaves over would grow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedge.codecs.codec import CHANGES, Codec, Meta, blank, blanks, cut, floats, listed, rest, total, widest
from fedge.codecs.largest import check_fraction, how_many
from fedge.core.fields import doc
from fedge.core.method import State
from fedge.core.payload import Tree


@dataclass(frozen=True, kw_only=True)
class RandomK(Codec):
    """A random ``fraction`` of each tensor."""

    fraction: float = field(default=0.1, metadata=doc("share of the numbers that is sent"))
    feedback: bool = field(default=False, metadata=doc("add what is left out to the next message; unscaled, biased"))

    key: ClassVar[str] = "randomk"
    roles: ClassVar[tuple[str, ...]] = CHANGES
    steps: ClassVar[tuple[str, ...]] = ("sparsify",)
    summary: ClassVar[str] = "a random share of the numbers, scaled so that the mean is right"
    paper: ClassVar[str] = "Wangni et al. 2018, arXiv 1710.09854"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.fraction)

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        mine = floats(tree)
        seed = torch.randint(1 << 62, (1,), generator=rng)
        values = [torch.empty(0, dtype=widest(mine))]
        for tensor, kept in zip(mine.values(), self._places(mine, seed), strict=True):
            scale = 1.0 if self.feedback or not len(kept) else tensor.numel() / len(kept)
            values.append(tensor.reshape(-1)[kept].to(values[0].dtype) * scale)
        own = {self.name("values"): torch.cat(values), self.name("seed"): seed}
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        mine, tree = blanks(meta["of"]), dict(tree)
        values, seed = tree.pop(self.name("values")), tree.pop(self.name("seed"))
        out = torch.zeros(total(mine), dtype=values.dtype)
        start = first = 0
        for tensor, kept in zip(mine.values(), self._places(mine, seed), strict=True):
            out[start + kept] = values[first : first + len(kept)]
            start, first = start + tensor.numel(), first + len(kept)
        return {**cut(out, mine), **tree}

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        mine = floats(tree)
        count = sum(how_many(self.fraction, tensor.numel()) for tensor in mine.values())
        own = {self.name("values"): blank(widest(mine), count), self.name("seed"): blank(torch.int64, 1)}
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def variance(self, tree: Tree) -> float | None:
        sizes = [tensor.numel() for tensor in floats(tree).values() if tensor.numel()]
        most = max((size / how_many(self.fraction, size) for size in sizes), default=1.0)
        return None if self.feedback else most - 1

    def _places(self, mine: Tree, seed: Tensor) -> Iterator[Tensor]:
        drawn = torch.Generator().manual_seed(int(seed))
        for tensor in mine.values():
            size = tensor.numel()
            yield torch.randperm(size, generator=drawn)[: how_many(self.fraction, size)].sort().values
