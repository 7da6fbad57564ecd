"""Top-k: only the numbers of largest magnitude are sent, with their places (Aji & Heafield 2017; EF: 1901.09847).

``‖x − T(x)‖² ≤ (1 − k/d) ‖x‖²`` and ``T(T(x)) = T(x)`` bit for bit. Bytes: ``k`` values, and places of ``⌈log₂ d⌉``
bits each or a bit for every number, whichever is less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedge.codecs import bits
from fedge.codecs.codec import CHANGES, Codec, Meta, blank, blanks, cut, floats, joined, listed, rest, total, widest
from fedge.codecs.largest import check_fraction, how_many, largest
from fedge.core.fields import doc
from fedge.core.method import State
from fedge.core.payload import Tree


@dataclass(frozen=True, kw_only=True)
class TopK(Codec):
    """The largest ``fraction`` of each tensor, or of all tensors together."""

    fraction: float = field(default=0.1, metadata=doc("share of the numbers that is sent"))
    scope: Literal["tensor", "tree"] = field(default="tensor", metadata=doc("the largest of each tensor, or of all"))
    feedback: bool = field(default=True, metadata=doc("what is left out is added to the next message"))

    key: ClassVar[str] = "topk"
    roles: ClassVar[tuple[str, ...]] = CHANGES
    steps: ClassVar[tuple[str, ...]] = ("sparsify",)
    summary: ClassVar[str] = "only the numbers of largest magnitude, with their places"
    paper: ClassVar[str] = "Aji & Heafield 2017, arXiv 1704.05021; Stich et al. 2018, arXiv 1809.07599"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.fraction)

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        mine = floats(tree)
        values, places = [torch.empty(0, dtype=widest(mine))], [torch.empty(0, dtype=torch.uint8)]
        for vector in self._vectors(mine):
            kept = largest(vector, how_many(self.fraction, len(vector)))
            values.append(vector[kept].to(values[0].dtype))
            places.append(bits.pack_places(kept, len(vector)))
        own = {self.name("values"): torch.cat(values), self.name("places"): torch.cat(places)}
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        mine, tree = blanks(meta["of"]), dict(tree)
        values, places = tree.pop(self.name("values")), tree.pop(self.name("places"))
        out = torch.zeros(total(mine), dtype=values.dtype)
        start = first = byte = 0
        for size in self._sizes(mine):
            count = how_many(self.fraction, size)
            end = byte + bits.places_nbytes(count, size)
            out[start + bits.unpack_places(places[byte:end], count, size)] = values[first : first + count]
            start, first, byte = start + size, first + count, end
        return {**cut(out, mine), **tree}

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        mine = floats(tree)
        counts = [(how_many(self.fraction, size), size) for size in self._sizes(mine)]
        own = {
            self.name("values"): blank(widest(mine), sum(count for count, _ in counts)),
            self.name("places"): blank(torch.uint8, sum(bits.places_nbytes(*each) for each in counts)),
        }
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def _sizes(self, mine: Tree) -> list[int]:
        return [total(mine)] if self.scope == "tree" else [tensor.numel() for tensor in mine.values()]

    def _vectors(self, mine: Tree) -> Iterator[Tensor]:
        return iter([joined(mine)]) if self.scope == "tree" else (tensor.reshape(-1) for tensor in mine.values())
