"""Eight bits a number, rounded to the nearest of 255 levels; the error is at most half a step of its block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedge.codecs.blocks import blocked, check_block, how_many_blocks, scale_of_each
from fedge.codecs.codec import NUMBERS, Codec, Meta, blank, blanks, cut, floats, listed, rest, total
from fedge.core.fields import doc
from fedge.core.method import State
from fedge.core.payload import Tree


@dataclass(frozen=True, kw_only=True)
class Int8(Codec):
    """Symmetric levels ``−127 … 127`` of ``max|x| / 127``, the maximum taken over each block."""

    block: int = field(default=512, metadata=doc("numbers that share a scale of four bytes"))

    key: ClassVar[str] = "int8"
    roles: ClassVar[tuple[str, ...]] = NUMBERS
    steps: ClassVar[tuple[str, ...]] = ("quantise",)
    summary: ClassVar[str] = "eight bits a number, rounded to nearest, a scale for each block"
    paper: ClassVar[str] = "Dettmers et al. 2022, arXiv 2110.02861 (block-wise scales)"
    #: The largest level.
    top: ClassVar[int] = 127

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(self.block)

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        mine = floats(tree)
        codes, scales = [torch.empty(0, dtype=torch.int8)], [torch.empty(0)]
        for tensor in mine.values():
            rows = blocked(tensor, self.block)
            step = rows.abs().amax(1) / self.top
            levels = (rows / step.where(step > 0, 1.0)[:, None]).round_().clamp_(-self.top, self.top)
            codes.append(levels.to(torch.int8).reshape(-1)[: tensor.numel()])
            scales.append(step)
        own = {self.name("codes"): self.packed(torch.cat(codes)), self.name("scales"): torch.cat(scales)}
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        mine, tree = blanks(meta["of"]), dict(tree)
        codes = self.unpacked(tree.pop(self.name("codes")), total(mine))
        numbers = codes * scale_of_each(mine, tree.pop(self.name("scales")), self.block)
        return {**cut(numbers, mine), **tree}

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        mine = floats(tree)
        scales = blank(torch.float32, how_many_blocks(mine, self.block))
        own = {self.name("codes"): self.outlined(total(mine)), self.name("scales"): scales}
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def packed(self, codes: Tensor) -> Tensor:
        """Levels [n] as they are sent."""
        return codes

    def unpacked(self, data: Tensor, count: int) -> Tensor:
        """``count`` levels out of what was sent."""
        return data

    def outlined(self, count: int) -> Tensor:
        """What ``packed`` gives for ``count`` levels, without data."""
        return blank(torch.int8, count)
