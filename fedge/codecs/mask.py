"""Masks: a bit a weight, then range-coded by each tensor's share of ones, ``d · H(p)`` bits (as FedPM counts them).

The coder is constriction's (Bamler 2022, arXiv 2201.01741). Where coding would not pay the packed bits are sent, so
that a mask never takes more than a bit a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import constriction
import numpy as np
import torch
from torch import Tensor

from fedge.codecs import bits
from fedge.codecs.codec import Codec, Meta, blank, blanks, cut, joined, listed, rest, total
from fedge.core.method import State
from fedge.core.payload import Tree
from fedge.errors import ProtocolError

#: Bits at once: a bit is a number of four bytes while it is coded.
_PIECE = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Mask(Codec):
    """Tensors of bool, and of bytes (uint8), which hold packed bits; all others go as they are."""

    key: ClassVar[str] = "mask"
    roles: ClassVar[tuple[str, ...]] = ("mask",)
    steps: ClassVar[tuple[str, ...]] = ("entropy",)
    summary: ClassVar[str] = "bits, range-coded by each tensor's share of ones"
    paper: ClassVar[str] = "Isik et al. 2023, arXiv 2209.15328 (FedPM); Bamler 2022, arXiv 2201.01741"
    lossless: ClassVar[bool] = True
    fixed: ClassVar[bool] = False

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        mine = {name: _spread(tensor) for name, tensor in _masks(tree).items()}
        ones = torch.tensor([int(tensor.sum()) for tensor in mine.values()], dtype=torch.int64)
        coder = constriction.stream.queue.RangeEncoder()
        for (tensor, model), size in zip(_coded(mine, ones), _sizes(mine, ones), strict=True):
            for start in range(0, size, _PIECE):
                coder.encode(tensor.reshape(-1)[start : start + _PIECE].numpy().astype(np.int32), model)
        coded = torch.from_numpy(coder.get_compressed().astype("<u4").view(np.uint8))
        whole = bits.nbytes(total(mine), 1)
        if len(coded) >= whole:
            coded = bits.pack(joined(mine, torch.bool), 1)
        own = {self.name("bits"): coded, self.name("ones"): ones}
        return {**own, **rest(tree, mine)}, _meta(tree, mine)

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        out = self._bits(tree, meta)
        return {n: t if n not in meta["packed"] else bits.pack(t, 1) for n, t in out.items()}

    def _bits(self, tree: Tree, meta: Meta) -> Tree:
        mine, tree = blanks(meta["of"]), dict(tree)
        data, ones = tree.pop(self.name("bits")), tree.pop(self.name("ones"))
        if any(not 0 <= count <= tensor.numel() for count, tensor in zip(ones.tolist(), mine.values(), strict=True)):
            raise ProtocolError("a mask with more ones than places")
        if len(data) == bits.nbytes(total(mine), 1):
            return {**cut(bits.unpack(data, 1, total(mine)), mine), **tree}
        if len(data) % 4:
            raise ProtocolError(f"{len(data)} bytes are no range-coded mask")
        coder = constriction.stream.queue.RangeDecoder(data.numpy().view("<u4").astype(np.uint32))
        models = iter(_coded(mine, ones))
        out: Tree = {}
        for (name, tensor), count in zip(mine.items(), ones.tolist(), strict=True):
            flat = torch.full((tensor.numel(),), count > 0)
            if 0 < count < tensor.numel():
                _, model = next(models)
                for start in range(0, len(flat), _PIECE):
                    piece = flat[start : start + _PIECE]
                    piece.copy_(torch.from_numpy(coder.decode(model, len(piece))))
            if int(flat.sum()) != count:
                raise ProtocolError(f"a mask of {count} ones that has {int(flat.sum())}")
            out[name] = flat.reshape(tensor.shape)
        return {**out, **tree}

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        mine = {n: t if t.dtype == torch.bool else blank(torch.bool, 8 * t.numel()) for n, t in _masks(tree).items()}
        packed = blank(torch.uint8, bits.nbytes(total(mine), 1))
        own = {self.name("bits"): packed, self.name("ones"): blank(torch.int64, len(mine))}
        return {**own, **rest(tree, mine)}, _meta(tree, mine)


def _masks(tree: Tree) -> Tree:
    packed = {name for name, t in tree.items() if t.dtype == torch.uint8 and t.dim() == 1}
    return {name: tensor for name, tensor in tree.items() if tensor.dtype == torch.bool or name in packed}


def _meta(tree: Tree, mine: Tree) -> Meta:
    return {"of": listed(mine), "packed": [name for name in mine if tree[name].dtype == torch.uint8]}


def _spread(tensor: Tensor) -> Tensor:
    """A mask's own bits; those of bytes as a vector, the most significant first."""
    return tensor if tensor.dtype == torch.bool else bits.unpack(tensor, 1, 8 * tensor.numel()).bool()


def _mixed(mine: Tree, ones: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Tensors that hold both zeros and ones, with their ones: a constant one needs no bits."""
    return ((t, n) for t, n in zip(mine.values(), ones.tolist(), strict=True) if 0 < n < t.numel())


def _sizes(mine: Tree, ones: Tensor) -> list[int]:
    return [tensor.numel() for tensor, _ in _mixed(mine, ones)]


def _coded(mine: Tree, ones: Tensor) -> Iterator[tuple[Tensor, Any]]:
    for tensor, count in _mixed(mine, ones):
        yield tensor, constriction.stream.model.Bernoulli(count / tensor.numel(), perfect=False)
