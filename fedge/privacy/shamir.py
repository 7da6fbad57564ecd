"""Shamir's sharing of 32-byte secrets: any ``threshold`` of the shares give the secret back, fewer say nothing of it.

A secret is the value at 0 of a polynomial of degree ``threshold − 1`` over the integers modulo a prime just above
2^256; a share is its value at the holder's place (Shamir 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: The least prime above 2^256.
PRIME = (1 << 256) + 297
#: Bytes of a share.
SIZE = 33
#: Random bytes that a coefficient takes; 128 bits more than the prime, so that its remainder is as good as uniform.
COEFFICIENT = 49


def split(secret: bytes, places: Sequence[int], threshold: int, random: bytes) -> dict[int, bytes]:
    """A share for each of ``places`` (distinct, above 0). ``random``: ``COEFFICIENT × (threshold − 1)`` bytes."""
    if len(secret) != 32 or not 0 < threshold <= len(places) or min(places) <= 0 or len(set(places)) < len(places):
        raise ValueError("a secret of 32 bytes, distinct places above 0, and a threshold within their number")
    pieces = [random[at * COEFFICIENT : (at + 1) * COEFFICIENT] for at in range(threshold - 1)]
    if pieces and len(pieces[-1]) < COEFFICIENT:
        raise ValueError("too few random bytes")
    terms = [int.from_bytes(secret, "big"), *(int.from_bytes(piece, "big") % PRIME for piece in pieces)]
    shares = {}
    for place in places:
        value = 0
        for term in reversed(terms):
            value = (value * place + term) % PRIME
        shares[place] = value.to_bytes(SIZE, "big")
    return shares


def joined(shares: Mapping[int, bytes]) -> bytes:
    """The secret of which these are as many shares as its threshold, or more.

    ValueError for shares that can't be of one secret of 32 bytes.
    """
    total = 0
    for place, share in shares.items():
        above = below = 1
        for other in shares:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        total += int.from_bytes(share, "big") * above * pow(below, -1, PRIME)
    secret = total % PRIME
    if secret >> 256:
        raise ValueError("the shares are not of one secret")
    return secret.to_bytes(32, "big")
