"""Casts to two bytes a number: fp16 (eleven bits of precision, up to 65504) and bf16 (eight bits, fp32's range)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedge.codecs.codec import NUMBERS, Codec, Meta, blank, blanks, cut, listed, rest, total
from fedge.core.method import State
from fedge.core.payload import Tree


@dataclass(frozen=True, kw_only=True)
class Fp16(Codec):
    """Numbers of four bytes or more, rounded to nearest; beyond ±65504 they stay there."""

    key: ClassVar[str] = "fp16"
    roles: ClassVar[tuple[str, ...]] = (*NUMBERS, "statistics", "scalars")
    steps: ClassVar[tuple[str, ...]] = ("quantise",)
    summary: ClassVar[str] = "two bytes a number, eleven bits of precision"
    paper: ClassVar[str] = "IEEE 754 binary16"
    dtype: ClassVar[torch.dtype] = torch.float16

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        mine, most = _wide(tree), torch.finfo(self.dtype).max
        flat = [tensor.reshape(-1).clamp(-most, most).to(self.dtype) for tensor in mine.values()]
        numbers = torch.cat([torch.empty(0, dtype=self.dtype), *flat])
        return {self.name("numbers"): numbers, **rest(tree, mine)}, {"of": listed(mine)}

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        tree = dict(tree)
        return {**cut(tree.pop(self.name("numbers")), blanks(meta["of"])), **tree}

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        mine = _wide(tree)
        return {self.name("numbers"): blank(self.dtype, total(mine)), **rest(tree, mine)}, {"of": listed(mine)}


@dataclass(frozen=True, kw_only=True)
class Bf16(Fp16):
    """The same with fp32's range and fewer bits of precision."""

    key: ClassVar[str] = "bf16"
    summary: ClassVar[str] = "two bytes a number, eight bits of precision, the range of fp32"
    paper: ClassVar[str] = "Kalamkar et al. 2019, arXiv 1905.12322"
    dtype: ClassVar[torch.dtype] = torch.bfloat16


def _wide(tree: Tree) -> Tree:
    return {name: t for name, t in tree.items() if t.is_floating_point() and t.element_size() > 2}
