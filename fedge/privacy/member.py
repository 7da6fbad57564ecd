"""One party of secure aggregation and the server's part, on bytes and arrays (Bonawitz et al. 2017, CCS, figure 4).

Each device masks its vector by ``PRG(b_u) + Σ_{u<v} PRG(s_uv) − Σ_{v<u} PRG(s_uv)`` over its neighbours v in a sparse
graph (Bell et al. 2020, SecAgg+); the pairs' masks cancel in the sum. It has shared ``b_u`` and its masking key among
itself and its neighbours, so what stays of the masks can be taken off the sum: of those who answered by their ``b``, of
those who were lost by their key, and never both for one device. Sound against a server that follows the protocol.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from fedge.privacy import shamir
from fedge.privacy.keys import TAG, Pair, derived, mask, seal, stream, unseal

#: Bytes of what one device sends another: a share of each of two secrets, sealed.
SEALED = 2 * shamir.SIZE + TAG


class ShortError(Exception):
    """Fewer shares came than a secret needs; nothing can be said of the sum."""


def needed(threshold: float, holders: int) -> int:
    """How many of a secret's holders must answer: the threshold's share of them, and more than half."""
    return max(math.ceil(threshold * holders - 1e-9), holders // 2 + 1)


def degree(devices: int, told: int | None) -> int:
    """With how many others each device shares: all where that is few, else about ``3 log2 n``, an even number."""
    others = devices - 1
    wanted = told if told is not None else max(8, 3 * math.ceil(math.log2(max(devices, 2))))
    return others if wanted >= others else wanted + wanted % 2


def graph(devices: int, told: int | None, rng: random.Random | None = None) -> list[list[int]]:
    """Each device's neighbours: a ring in random order, in which one knows those at most ``degree / 2`` places away."""
    count = degree(devices, told)
    if count >= devices - 1:
        return [[other for other in range(devices) if other != one] for one in range(devices)]
    order = list(range(devices))
    (rng or random.SystemRandom()).shuffle(order)
    near: list[list[int]] = [[] for _ in order]
    for at, one in enumerate(order):
        away = [order[(at + by) % devices] for by in range(-count // 2, count // 2 + 1) if by]
        near[one] = sorted(away)
    return near


class Member:
    """A device in one session. ``secret``: the device's own, 32 bytes; ``session``: the server's nonce."""

    def __init__(self, secret: bytes, session: bytes):
        self._session = session
        self._channel = Pair.of(derived(secret, session, "channel"))
        self._masking = Pair.of(derived(secret, session, "masking"))
        self._own = derived(secret, session, "own mask")
        self._coefficients = derived(secret, session, "coefficients")
        self._place = -1
        self._book: dict[int, tuple[bytes, bytes]] = {}
        self._held: dict[int, tuple[bytes, bytes]] = {}
        self._told = False

    @property
    def public(self) -> tuple[bytes, bytes]:
        """The public keys for messages and for masks."""
        return self._channel.public, self._masking.public

    def share(self, place: int, book: Mapping[int, tuple[bytes, bytes]], threshold: float) -> dict[int, bytes]:
        """Sealed shares for each neighbour in ``book`` (place -> its public keys)."""
        self._place, self._book = place, dict(book)
        holders = sorted([place, *book])
        count = needed(threshold, len(holders))
        random = stream(self._coefficients, 2 * shamir.COEFFICIENT * (count - 1))
        half = len(random) // 2
        places = [holder + 1 for holder in holders]
        own = shamir.split(self._own, places, count, random[:half])
        key = shamir.split(self._masking.secret, places, count, random[half:])
        self._held = {place: (own[place + 1], key[place + 1])}
        return {
            other: seal(self._channel_key(place, other, public), own[other + 1] + key[other + 1], self._session)
            for other, (public, _) in book.items()
        }

    def take(self, sealed: Mapping[int, bytes]) -> None:
        """Open the shares that neighbours sent; those who sent none have no mask with this device."""
        for other, message in sealed.items():
            both = unseal(self._channel_key(other, self._place, self._book[other][0]), message, self._session)
            self._held[other] = both[: shamir.SIZE], both[shamir.SIZE :]

    def mask(self, into: np.ndarray) -> None:
        """Mask a vector of the ring's numbers, in place."""
        mask(into, self._own, 1)
        for other in self._held:
            if other != self._place:
                sign = 1 if self._place < other else -1
                mask(into, self._masking.agreed(self._book[other][1], self._session, "pair"), sign)

    def reveal(self, here: Sequence[int], lost: Sequence[int]) -> tuple[list[bytes], list[bytes]]:
        """Its shares of the own masks of those who are ``here`` (itself first) and of the keys of those who are lost.

        ValueError when one is said to be both, isn't a neighbour, or when it is asked a second time: together that
        would lay an answer open.
        """
        if self._told or set(here) & set(lost) or not {*here, *lost} <= set(self._held) - {self._place}:
            raise ValueError("the server asks for shares that would lay an answer open")
        self._told = True
        return [self._held[v][0] for v in (self._place, *here)], [self._held[v][1] for v in lost]

    def _channel_key(self, sender: int, receiver: int, public: bytes) -> bytes:
        return self._channel.agreed(public, self._session, f"shares {sender} {receiver}")


def unmask(
    total: np.ndarray,
    session: bytes,
    publics: Mapping[int, bytes],
    near: Mapping[int, Collection[int]],
    shared: Collection[int],
    answered: Collection[int],
    own: Mapping[int, Mapping[int, bytes]],
    keys: Mapping[int, Mapping[int, bytes]],
    needs: Mapping[int, int],
) -> None:
    """Take what is left of the masks off the sum of those who answered, in place.

    publics: each one's public key for masks. near: its neighbours. shared: who had sent shares. own, keys: for each
    device the shares of its own mask and of its masking key, by holder. needs: how many of them it takes. ShortError
    where they are too few.
    """

    def secret(of: int, shares: Mapping[int, bytes]) -> bytes:
        count = needs[of]
        if len(shares) < count:
            raise ShortError(f"{len(shares)} of {count} shares that are needed came")
        return shamir.joined({holder + 1: shares[holder] for holder in sorted(shares)[:count]})

    for one in sorted(answered):
        mask(total, secret(one, own.get(one, {})), -1)
    for gone in sorted(set(shared) - set(answered)):
        partners = [one for one in near[gone] if one in answered]
        if not partners:
            continue
        pair = Pair.of(secret(gone, keys.get(gone, {})))
        if pair.public != publics[gone]:
            raise ShortError("the shares of a lost device's key are not of its key")
        for one in partners:
            mask(total, pair.agreed(publics[one], session, "pair"), -1 if one < gone else 1)
