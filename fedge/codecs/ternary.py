"""Ternary: the largest numbers become ``±μ``, all others nothing; their places are Golomb-coded.

Sparse ternary compression (Sattler et al. 2019, arXiv 1903.02891, alg. 1) takes for ``μ`` the mean magnitude of what is
kept and feeds the error back. ComPEFT (Yadav et al. 2023, arXiv 2311.13171) takes ``α`` standard deviations of all
numbers and sends a change once, without feedback: ``{scale: std, feedback: false}``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from fedge.codecs import bits, golomb
from fedge.codecs.codec import CHANGES, Codec, Meta, blank, blanks, cut, floats, joined, listed, rest, total
from fedge.codecs.largest import check_fraction, how_many, largest
from fedge.core.fields import doc
from fedge.core.method import State
from fedge.core.payload import Tree


@dataclass(frozen=True, kw_only=True)
class Ternary(Codec):
    """The largest ``fraction`` of all tensors together: a sign each, one scale, and their places."""

    fraction: float = field(default=0.05, metadata=doc("share of the numbers that is sent"))
    scale: Literal["mean", "std"] = field(default="mean", metadata=doc("the scale: mean of the kept, or std of all"))
    alpha: float = field(default=1.0, metadata=doc("factor of the scale"))
    feedback: bool = field(default=True, metadata=doc("what is left out is added to the next message"))

    key: ClassVar[str] = "ternary"
    roles: ClassVar[tuple[str, ...]] = CHANGES
    steps: ClassVar[tuple[str, ...]] = ("sparsify", "quantise", "entropy")
    summary: ClassVar[str] = "the largest numbers as plus or minus one scale, places Golomb-coded"
    paper: ClassVar[str] = "Sattler et al. 2019, arXiv 1903.02891; Yadav et al. 2023, arXiv 2311.13171"
    fixed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.fraction)
        if self.scale not in ("mean", "std"):
            raise ValueError(f"scale is mean or std, not {self.scale!r}")
        if self.feedback and (self.scale, self.alpha) != ("mean", 1.0):
            raise ValueError("scale and alpha other than the mean and 1 may send more than there is: feedback: false")

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        mine = floats(tree)
        flat = joined(mine, torch.float32)
        kept = largest(flat, how_many(self.fraction, len(flat)))
        values, spread = flat[kept], torch.zeros(1)
        if len(flat):
            spread[0] = values.abs().mean() if self.scale == "mean" else flat.std(correction=0)
        own = {
            self.name("places"): golomb.encode(kept, len(flat)),
            self.name("signs"): bits.pack(values < 0, 1),
            self.name("scale"): spread * self.alpha,
        }
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        mine, tree = blanks(meta["of"]), dict(tree)
        size = total(mine)
        count = how_many(self.fraction, size)
        places = golomb.decode(tree.pop(self.name("places")), count, size)
        signs = 1 - 2 * bits.unpack(tree.pop(self.name("signs")), 1, count)
        out = torch.zeros(size)
        out[places] = signs * tree.pop(self.name("scale"))
        return {**cut(out, mine), **tree}

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        mine = floats(tree)
        size = total(mine)
        count = how_many(self.fraction, size)
        own = {
            self.name("places"): blank(torch.uint8, golomb.most_nbytes(count, size)),
            self.name("signs"): blank(torch.uint8, bits.nbytes(count, 1)),
            self.name("scale"): blank(torch.float32, 1),
        }
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}
