"""Small floating-point formats S1EeMm with a fitted line: what OMC keeps and sends models in (Yang et al. 2023).

A number becomes the nearest of sign, ``e`` bits of exponent and ``m`` of fraction, with subnormal numbers and neither
infinity nor NaN. Of what came of a tensor V, Ṽ, the line ``s Ṽ + b`` nearest to V in the sense of least squares is sent
with it: ``s = (n ΣVṼ − ΣV ΣṼ) / (n ΣṼ² − (ΣṼ)²)``, ``b = (ΣV − s ΣṼ) / n``. 11 bits a number with e=3, m=7.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedge.codecs import bits
from fedge.codecs.codec import NUMBERS, Codec, Meta, blank, blanks, listed, rest
from fedge.core.fields import doc
from fedge.core.method import State
from fedge.core.payload import Tree


@dataclass(frozen=True, kw_only=True)
class MiniFloat(Codec):
    """Every tensor of ``least`` dimensions or more; the others (norms, biases) go as they are."""

    exponent: int = field(default=3, metadata=doc("e: bits of the exponent"))
    mantissa: int = field(default=7, metadata=doc("m: bits of the fraction"))
    least: int = field(default=2, metadata=doc("dimensions of the smallest tensors that are touched: 2 for matrices"))

    key: ClassVar[str] = "minifloat"
    roles: ClassVar[tuple[str, ...]] = NUMBERS
    steps: ClassVar[tuple[str, ...]] = ("quantise",)
    summary: ClassVar[str] = "a floating-point format of few bits, with a line fitted to each matrix"
    paper: ClassVar[str] = "Yang et al. 2023, ICASSP (OMC)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (2 <= self.exponent <= 8 and 1 <= self.mantissa <= 14):
            raise ValueError(f"exponent has 2 to 8 bits, mantissa 1 to 14, not {self.exponent} and {self.mantissa}")

    @property
    def width(self) -> int:
        """Bits a number."""
        return 1 + self.exponent + self.mantissa

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        mine = self.touched(tree)
        codes, lines = [torch.empty(0, dtype=torch.uint8)], torch.zeros(len(mine), 2)
        for place, tensor in enumerate(mine.values()):
            exact = tensor.reshape(-1).float()
            code = self.nearest(exact)
            codes.append(bits.pack(code, self.width))
            lines[place] = fitted(exact, self.value(code))
        own = {self.name("codes"): torch.cat(codes), self.name("lines"): lines}
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        mine, tree = blanks(meta["of"]), dict(tree)
        codes, lines = tree.pop(self.name("codes")), tree.pop(self.name("lines"))
        out, first = {}, 0
        for (name, tensor), (slope, shift) in zip(mine.items(), lines, strict=True):
            last = first + bits.nbytes(tensor.numel(), self.width)
            found = self.value(bits.unpack(codes[first:last], self.width, tensor.numel())) * slope + shift
            out[name], first = found.reshape(tensor.shape).to(tensor.dtype), last
        return {**out, **tree}

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        mine = self.touched(tree)
        length = sum(bits.nbytes(tensor.numel(), self.width) for tensor in mine.values())
        own = {self.name("codes"): blank(torch.uint8, length), self.name("lines"): blank(torch.float32, len(mine), 2)}
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def touched(self, tree: Tree) -> Tree:
        """The tensors that are put into the format."""
        return {name: t for name, t in tree.items() if t.is_floating_point() and t.dim() >= self.least}

    def nearest(self, numbers: Tensor) -> Tensor:
        """The codes (int32) of the nearest numbers of the format to float32 ``[n]``; ties go to the even one."""
        lowest = 2 - (1 << self.exponent - 1)  # the exponent of the smallest normal number
        size = numbers.abs()
        power = torch.log2(size.clamp_min(2.0**lowest)).floor()
        whole = (size * torch.exp2(self.mantissa - power)).round()  # the hidden one included; subnormal below 2^m
        top = (1 << self.exponent + self.mantissa) - 1
        code = (whole + (power - lowest) * (1 << self.mantissa)).clamp_(max=top).to(torch.int32)
        return code | (numbers < 0).to(torch.int32) << (self.exponent + self.mantissa)

    def value(self, codes: Tensor) -> Tensor:
        """The numbers (float32) of codes."""
        lowest = 2 - (1 << self.exponent - 1)
        code = codes & (1 << self.exponent + self.mantissa) - 1
        power, part = code >> self.mantissa, code & (1 << self.mantissa) - 1
        whole = torch.where(power > 0, part + (1 << self.mantissa), part)
        numbers = whole * torch.exp2((power.clamp_min(1) - 1 + lowest - self.mantissa).float())
        return torch.where(codes >> (self.exponent + self.mantissa) > 0, -numbers, numbers)


def fitted(exact: Tensor, rounded: Tensor) -> Tensor:
    """Slope and shift ``[2]`` of the line through ``rounded [n]`` that is nearest to ``exact [n]``; 1 and the mean
    difference where all that was rounded is one number."""
    v, r = exact.double(), rounded.double()
    count = max(1, len(v))
    below = count * r.square().sum() - r.sum().square()
    above = count * (v * r).sum() - v.sum() * r.sum()
    flat = below <= 1e-12 * count * r.square().sum()
    slope = torch.where(flat, 1.0, above / below.where(~flat, 1.0))
    return torch.stack([slope, (v.sum() - slope * r.sum()) / count]).float()
