"""NNADQ: as many levels as a tensor's own range asks for (FedOBD, Chen et al. 2023, arXiv 2208.05174).

With offset ``o = −(max + min)/2``, ``y = x + o``, ``n = max|y|`` there are ``ℓ = max(1, ⌊√(32 n ln4 / β)⌋)`` levels and
``q = round(|y| ℓ / n)``: ``1 + ⌈log₂(ℓ + 1)⌉`` bits a number with its sign, and an error of at most ``n / 2ℓ``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from fedge.codecs import bits
from fedge.codecs.codec import NUMBERS, Codec, Meta, blank, blanks, floats, listed, rest
from fedge.core.fields import doc
from fedge.core.method import State
from fedge.core.payload import Tree
from fedge.errors import ProtocolError


@dataclass(frozen=True, kw_only=True)
class NNADQ(Codec):
    """The length depends on the numbers; it is predicted as if every tensor took ``most`` bits a number."""

    beta: float = field(default=1e-3, metadata=doc("weight of error against length: 1e-3, or 1e-4 for text models"))
    most: int = field(default=16, metadata=doc("bits a number beyond which no tensor goes"))

    key: ClassVar[str] = "nnadq"
    roles: ClassVar[tuple[str, ...]] = NUMBERS
    steps: ClassVar[tuple[str, ...]] = ("quantise",)
    summary: ClassVar[str] = "each tensor with the number of levels that its range asks for"
    paper: ClassVar[str] = "Chen et al. 2023, arXiv 2208.05174 (FedOBD); rounds to nearest as the paper's code does"
    fixed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0 or not 2 <= self.most <= 24:
            raise ValueError(f"beta must be above 0 and most from 2 to 24 bits, not {self.beta:g} and {self.most}")

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        mine = floats(tree)
        codes, ranges, levels = [torch.empty(0, dtype=torch.uint8)], torch.zeros(len(mine), 2), []
        for place, tensor in enumerate(mine.values()):
            flat = tensor.reshape(-1).float()
            if len(flat):
                ranges[place, 0] = offset = -(flat.max() + flat.min()) / 2
                flat = flat + offset
                ranges[place, 1] = flat.abs().max()
            norm = float(ranges[place, 1])
            levels.append(min(max(1, int(math.sqrt(norm * 32 * math.log(4) / self.beta))), (1 << self.most - 1) - 1))
            whole = (flat.abs() * (levels[-1] / norm if norm > 0 else 0.0)).round_().clamp_(max=levels[-1])
            signed = whole.to(torch.int32) << 1 | ((flat < 0) & (whole > 0))
            codes.append(bits.pack(signed, 1 + bits.width(levels[-1])))
        own = {"codes": torch.cat(codes), "ranges": ranges, "levels": torch.tensor(levels, dtype=torch.int32)}
        return {**{self.name(n): t for n, t in own.items()}, **rest(tree, mine)}, {"of": listed(mine)}

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        mine, tree = blanks(meta["of"]), dict(tree)
        codes, ranges, levels = (tree.pop(self.name(piece)) for piece in ("codes", "ranges", "levels"))
        out, first = {}, 0
        for (name, tensor), (offset, norm), level in zip(mine.items(), ranges, levels.tolist(), strict=True):
            wide = 1 + bits.width(level)
            last = first + bits.nbytes(tensor.numel(), wide)
            if not (level > 0 and wide <= self.most and last <= len(codes)):
                raise ProtocolError(f"{level} levels in {len(codes) - first} bytes")
            signed = bits.unpack(codes[first:last], wide, tensor.numel())
            flat = (signed >> 1) * (1 - 2 * (signed & 1)) * (norm / level) - offset
            out[name], first = flat.reshape(tensor.shape).to(tensor.dtype), last
        if first != len(codes):
            raise ProtocolError(f"{len(codes) - first} bytes too many")
        return {**out, **tree}

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        mine = floats(tree)
        own = {
            "codes": blank(torch.uint8, sum(bits.nbytes(tensor.numel(), self.most) for tensor in mine.values())),
            "ranges": blank(torch.float32, len(mine), 2),
            "levels": blank(torch.int32, len(mine)),
        }
        return {**{self.name(n): t for n, t in own.items()}, **rest(tree, mine)}, {"of": listed(mine)}
