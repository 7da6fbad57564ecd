"""Golomb-Rice coding of ascending places: each gap's quotient by ``2^b`` in unary, its remainder in ``b`` bits.

All remainders come first and all quotients after, which numpy packs at once and which is as long as any other order:
``k (b + 1) + Σ ⌊gap / 2^b⌋`` bits (Golomb 1966; Rice 1979). No library that is kept does this other than number by
number.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fedge.codecs import bits
from fedge.core.traced import is_traced
from fedge.errors import ProtocolError


def parameter(count: int, size: int) -> int:
    """``b`` for ``count`` places of ``size``: ``1 + ⌊log₂(ln(φ − 1) / ln(1 − p))⌋`` (Sattler et al. 2019, eq. 15)."""
    if not 0 < count < size:
        return 0
    ratio = math.log((math.sqrt(5) - 1) / 2) / math.log1p(-count / size)
    return max(0, 1 + math.floor(math.log2(ratio)))


def most_nbytes(count: int, size: int) -> int:
    """The bytes that no ``count`` places of ``size`` exceed: their gaps sum up to at most ``size − count``."""
    b = parameter(count, size)
    return bits.nbytes(count, b) + bits.nbytes(count + (size - count >> b), 1)


def encode(places: Tensor, size: int) -> Tensor:
    """Ascending places [k] of a vector of ``size`` numbers as bytes; of a plan's, the most that they may be."""
    if is_traced(places):
        return torch.empty(most_nbytes(len(places), size), dtype=torch.uint8)
    b = parameter(len(places), size)
    gaps = torch.diff(places, prepend=torch.tensor([-1])) - 1
    ends = (gaps >> b).add_(1).cumsum(0) - 1
    unary = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, dtype=np.uint8)
    unary[ends.numpy()] = 1
    return torch.cat([bits.pack(gaps & (1 << b) - 1, b), torch.from_numpy(np.packbits(unary))])


def decode(data: Tensor, count: int, size: int) -> Tensor:
    """The places that ``encode`` coded. ProtocolError for bytes that are not ``count`` places of ``size``."""
    if is_traced(data):
        return torch.empty(count, dtype=torch.int64)
    b = parameter(count, size)
    split = bits.nbytes(count, b)
    if not split <= len(data) <= most_nbytes(count, size):
        raise ProtocolError(f"{len(data)} bytes can't be {count} places of {size}")
    ends = torch.from_numpy(np.flatnonzero(np.unpackbits(data[split:].numpy())))
    if len(ends) != count:
        raise ProtocolError(f"{len(ends)} places where {count} belong")
    quotients = torch.diff(ends, prepend=torch.tensor([-1])) - 1
    places = ((quotients << b) + bits.unpack(data[:split], b, count)).add_(1).cumsum(0) - 1
    if count and int(places[-1]) >= size:
        raise ProtocolError(f"place {int(places[-1])} of {size}")
    return places
