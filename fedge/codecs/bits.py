"""Whole numbers in few bits, and places of a vector, packed into bytes; most significant bit first.

Of a plan's tensors, which have no numbers, the results have the right sizes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedge.core.traced import is_traced
from fedge.errors import ProtocolError

#: Numbers at once: a multiple of 8, so that every piece ends on a byte, and small, since a bit takes a byte meanwhile.
_PIECE = 1 << 16


def width(top: int) -> int:
    """Bits for a number from 0 to ``top``; 0 where there is but one."""
    return int(top).bit_length()


def nbytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers [n] in [0, 2**bits), of at most 31 bits, as ``nbytes(n, bits)`` bytes."""
    if is_traced(codes):
        return torch.empty(nbytes(len(codes), bits), dtype=torch.uint8)
    places = np.arange(bits - 1, -1, -1, dtype=np.int32)
    pieces = []
    for piece in torch.split(codes, _PIECE):
        spread = (piece.to(torch.int32).numpy()[:, None] >> places) & 1
        pieces.append(np.packbits(spread.astype(np.uint8).reshape(-1)))
    return torch.from_numpy(np.concatenate(pieces)) if pieces else torch.empty(0, dtype=torch.uint8)


def unpack(data: Tensor, bits: int, count: int) -> Tensor:
    """The ``count`` numbers that ``pack`` packed, as int32."""
    out = torch.empty(count, dtype=torch.int32)
    if is_traced(data):
        return out
    if bits == 0:
        return out.zero_()
    raw, powers = data.numpy(), 1 << np.arange(bits - 1, -1, -1, dtype=np.int32)
    for start in range(0, count, _PIECE):
        stop = min(start + _PIECE, count)
        piece = raw[start * bits // 8 : nbytes(stop, bits)]
        spread = np.unpackbits(piece, count=(stop - start) * bits).reshape(-1, bits)
        out[start:stop] = torch.from_numpy(spread @ powers)
    return out


def places_nbytes(count: int, size: int) -> int:
    """Bytes for ``count`` of ``size`` places: each one's number, or one bit for every place, whichever is less."""
    return min(nbytes(count, width(size - 1)), nbytes(size, 1)) if size else 0


def pack_places(places: Tensor, size: int) -> Tensor:
    """Ascending places of a vector of ``size`` numbers as ``places_nbytes(len(places), size)`` bytes."""
    if is_traced(places):
        return torch.empty(places_nbytes(len(places), size), dtype=torch.uint8)
    if nbytes(len(places), width(size - 1)) < nbytes(size, 1):
        return pack(places, width(size - 1))
    here = torch.zeros(size, dtype=torch.bool)
    here[places] = True
    return torch.from_numpy(np.packbits(here.numpy()))


def unpack_places(data: Tensor, count: int, size: int) -> Tensor:
    """The places that ``pack_places`` packed. ProtocolError for others than ``count`` different ones of ``size``."""
    if is_traced(data):
        return torch.empty(count, dtype=torch.int64)
    if nbytes(count, width(size - 1)) < nbytes(size, 1):
        places = unpack(data, width(size - 1), count).long()
        good = bool((places[1:] > places[:-1]).all()) and (count == 0 or int(places[-1]) < size)
    else:
        places = torch.from_numpy(np.flatnonzero(np.unpackbits(data.numpy(), count=size)))
        good = len(places) == count
    if not good:
        raise ProtocolError(f"not {count} ascending places of {size}")
    return places
