"""zstandard over everything: what is left of regularity in any tensor, without loss (RFC 8878).

The bytes of numbers that take several are put in planes, all first bytes, then all second ones, because signs and
exponents resemble each other and fractions don't.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
import zstandard
from torch import Tensor

from fedge.codecs.codec import Codec, Meta, blank, blanks, listed
from fedge.core.fields import doc
from fedge.core.method import State
from fedge.core.payload import Tree
from fedge.core.roles import ROLES, SECRET
from fedge.errors import ProtocolError

#: The first byte says whether a frame follows or the bytes as they are.
_PLAIN, _CODED = b"\0", b"\1"


@dataclass(frozen=True, kw_only=True)
class Zstd(Codec):
    """All tensors of a role in one frame; where that would not pay, their bytes as they are."""

    level: int = field(default=3, metadata=doc("effort, from 1 to 22"))

    key: ClassVar[str] = "zstd"
    roles: ClassVar[tuple[str, ...]] = tuple(role for role in ROLES if role not in SECRET)
    steps: ClassVar[tuple[str, ...]] = ("entropy",)
    summary: ClassVar[str] = "zstandard over the bytes of whatever comes before it; without loss"
    paper: ClassVar[str] = "Collet & Kucherawy 2021, RFC 8878"
    lossless: ClassVar[bool] = True
    fixed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.level <= 22:
            raise ValueError(f"level is from 1 to 22, not {self.level}")

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        # sizes go along: what comes before this one may be shorter than outlined
        sizes = np.array([tensor.numel() for tensor in tree.values()], dtype="<i8")
        raw = b"".join([sizes.tobytes(), *(_planes(tensor) for tensor in tree.values())])
        coded = zstandard.ZstdCompressor(level=self.level).compress(raw)
        sent = bytearray(_CODED + coded if len(coded) < len(raw) else _PLAIN + raw)
        return {self.name("data"): torch.frombuffer(sent, dtype=torch.uint8)}, {"of": listed(tree)}

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        mine = blanks(meta["of"])
        raw = _raw(tree[self.name("data")].numpy().tobytes(), _most(mine))
        head = 8 * len(mine)
        if len(raw) < head:
            raise ProtocolError(f"{len(raw)} bytes for {len(mine)} tensors")
        out, first = {}, head
        for (name, tensor), size in zip(mine.items(), np.frombuffer(raw[:head], dtype="<i8").tolist(), strict=True):
            last = first + size * tensor.element_size()
            shape = tensor.shape if size == tensor.numel() else (size,)
            if not 0 <= size <= tensor.numel() or len(shape) != tensor.dim() or last > len(raw):
                raise ProtocolError(f"{size} numbers where {list(tensor.shape)} belong")
            out[name] = _from_planes(raw[first:last], tensor.dtype).reshape(shape)
            first = last
        if first != len(raw):
            raise ProtocolError(f"{len(raw) - first} bytes too many")
        return out

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        return {self.name("data"): blank(torch.uint8, 1 + _most(tree))}, {"of": listed(tree)}


def _most(tree: Tree) -> int:
    return 8 * len(tree) + sum(tensor.numel() * tensor.element_size() for tensor in tree.values())


def _planes(tensor: Tensor) -> bytes:
    width = tensor.element_size()
    return tensor.contiguous().reshape(-1).view(torch.uint8).reshape(-1, width).T.contiguous().numpy().tobytes()


def _from_planes(data: bytes, dtype: torch.dtype) -> Tensor:
    width = torch.empty((), dtype=dtype).element_size()
    planes = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()).reshape(width, -1)
    return planes.T.contiguous().reshape(-1).view(dtype)


def _raw(data: bytes, most: int) -> bytes:
    """What was sent, inflated. The length that a frame declares is checked before anything is allocated."""
    if data[:1] == _PLAIN:
        return data[1:]
    if data[:1] != _CODED:
        raise ProtocolError("neither a zstandard frame nor plain bytes")
    try:
        declared = zstandard.frame_content_size(data[1:])
        if not 0 <= declared <= most:
            raise ProtocolError(f"a frame of {declared} bytes where at most {most} belong")
        return zstandard.ZstdDecompressor().decompress(data[1:], allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"not a zstandard frame: {error}") from error
