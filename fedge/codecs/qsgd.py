"""QSGD: random rounding to ``s`` levels of the norm, unbiased (Alistarh et al. 2017, arXiv 1610.02132, eq. 4).

``Q(v_i) = ‖v‖₂ · sign(v_i) · ξ_i / s`` with ``ξ = ⌊a⌋ + Bernoulli(a − ⌊a⌋)``, ``a = s |v_i| / ‖v‖₂``, for each bucket;
``E‖Q(v) − v‖² ≤ min(d/s², √d/s) ‖v‖²`` with ``d`` the bucket's size. On changes of the model after local steps it is
what FedPAQ sends (Reisizadeh et al. 2020, arXiv 1909.13014).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from fedge.codecs import bits
from fedge.codecs.blocks import blocked, check_block, how_many_blocks, scale_of_each
from fedge.codecs.codec import NUMBERS, Codec, Meta, blank, blanks, cut, floats, listed, rest, total
from fedge.core.fields import doc
from fedge.core.method import State
from fedge.core.payload import Tree


@dataclass(frozen=True, kw_only=True)
class QSGD(Codec):
    """``1 + ⌈log₂(s + 1)⌉`` bits a number and four bytes a bucket, of fixed length."""

    levels: int = field(default=127, metadata=doc("levels s between nothing and the norm"))
    bucket: int = field(default=512, metadata=doc("numbers that share a norm of four bytes"))

    key: ClassVar[str] = "qsgd"
    roles: ClassVar[tuple[str, ...]] = NUMBERS
    steps: ClassVar[tuple[str, ...]] = ("quantise",)
    summary: ClassVar[str] = "random rounding to levels of the norm; unbiased"
    paper: ClassVar[str] = "Alistarh et al. 2017, arXiv 1610.02132; Reisizadeh et al. 2020, arXiv 1909.13014"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(self.bucket)
        if not 1 <= self.levels < 1 << 20:
            raise ValueError(f"levels must be 1 or more and fewer than {1 << 20}, not {self.levels}")

    @property
    def bits(self) -> int:
        return 1 + bits.width(self.levels)

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        mine = floats(tree)
        codes, norms = [torch.empty(0, dtype=torch.int32)], [torch.empty(0)]
        for tensor in mine.values():
            rows = blocked(tensor, self.bucket)
            most = rows.abs().amax(1)  # taken out before squaring, which large numbers would not survive
            norm = most * (rows / most.where(most > 0, 1.0)[:, None]).norm(dim=1)
            exact = rows.abs() / norm.where(norm > 0, 1.0)[:, None] * self.levels
            level = (exact + torch.rand(rows.shape, generator=rng)).floor_().clamp_(max=self.levels).to(torch.int32)
            codes.append((level << 1 | (rows < 0)).reshape(-1)[: tensor.numel()])
            norms.append(norm)
        own = {self.name("codes"): bits.pack(torch.cat(codes), self.bits), self.name("norms"): torch.cat(norms)}
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        mine, tree = blanks(meta["of"]), dict(tree)
        codes = bits.unpack(tree.pop(self.name("codes")), self.bits, total(mine))
        signed = (codes >> 1) * (1 - 2 * (codes & 1))
        numbers = signed * (scale_of_each(mine, tree.pop(self.name("norms")), self.bucket) / self.levels)
        return {**cut(numbers, mine), **tree}

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        mine = floats(tree)
        own = {
            self.name("codes"): blank(torch.uint8, bits.nbytes(total(mine), self.bits)),
            self.name("norms"): blank(torch.float32, how_many_blocks(mine, self.bucket)),
        }
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def variance(self, tree: Tree) -> float | None:
        return min(self.bucket / self.levels**2, self.bucket**0.5 / self.levels)
