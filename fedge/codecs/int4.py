"""Four bits a number, two of them in a byte, rounded to the nearest of 15 levels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedge.codecs import bits
from fedge.codecs.codec import blank
from fedge.codecs.int8 import Int8
from fedge.core.fields import doc


@dataclass(frozen=True, kw_only=True)
class Int4(Int8):
    """As ``int8`` with the levels ``−7 … 7``, and smaller blocks because the levels are coarser."""

    block: int = field(default=64, metadata=doc("numbers that share a scale of four bytes"))

    key: ClassVar[str] = "int4"
    summary: ClassVar[str] = "four bits a number, rounded to nearest, a scale for each block"
    paper: ClassVar[str] = "Dettmers et al. 2023, arXiv 2305.14314 (blocks of 64; their levels are not even)"
    top: ClassVar[int] = 7

    def packed(self, codes: Tensor) -> Tensor:
        return bits.pack(codes + self.top, 4)

    def unpacked(self, data: Tensor, count: int) -> Tensor:
        return bits.unpack(data, 4, count) - self.top

    def outlined(self, count: int) -> Tensor:
        return blank(torch.uint8, bits.nbytes(count, 4))
