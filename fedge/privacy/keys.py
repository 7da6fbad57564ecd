"""Keys, sealed messages and masks of secure aggregation, all by the library ``cryptography``.

X25519 agrees on keys, HKDF-SHA256 derives them, ChaCha20-Poly1305 seals shares, AES-256 in counter mode makes masks.
A device derives what it uses in a session from a secret of its own, drawn from the operating system, and from the
session's nonce: so a process that has to begin again in the middle of a session has the same keys, and no two sessions
share any.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

#: Bytes of a public key, and by how many a sealed message is longer.
KEY, TAG = 32, 16
#: Numbers of a mask that are made at once.
_PIECE = 1 << 18


def derived(secret: bytes, nonce: bytes, purpose: str) -> bytes:
    """32 bytes for one purpose, that say nothing of the secret or of other purposes' (RFC 5869)."""
    return HKDF(hashes.SHA256(), 32, nonce, b"fedge secagg " + purpose.encode()).derive(secret)


@dataclass(frozen=True)
class Pair:
    """A private key of X25519 and its public one."""

    private: X25519PrivateKey

    @classmethod
    def of(cls, seed: bytes) -> Pair:
        return cls(X25519PrivateKey.from_private_bytes(seed))

    @property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def secret(self) -> bytes:
        return self.private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    def agreed(self, public: bytes, nonce: bytes, purpose: str) -> bytes:
        """The 32 bytes on which both owners agree. ValueError for a public key that is none."""
        return derived(self.private.exchange(X25519PublicKey.from_public_bytes(public)), nonce, purpose)


def seal(key: bytes, text: bytes, about: bytes) -> bytes:
    """``text`` under a key that is used for this one message, bound to ``about``."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), text, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """What was sealed. ValueError when anything of it was changed."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, about)
    except InvalidTag as error:
        raise ValueError("a sealed message was changed on its way") from error


def stream(key: bytes, count: int) -> bytes:
    """``count`` bytes that nobody without the key can tell from random ones; the key is used for this alone."""
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(count))


def mask(into: np.ndarray, key: bytes, sign: int) -> None:
    """Add (``sign`` 1) or take away (−1) the key's mask, in place; ``into`` is of unsigned numbers, which wrap."""
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    for start in range(0, len(into), _PIECE):
        piece = into[start : start + _PIECE]
        drawn = np.frombuffer(cipher.update(bytes(piece.nbytes)), dtype=piece.dtype)
        if sign > 0:
            piece += drawn
        else:
            piece -= drawn


def fresh(count: int) -> bytes:
    """Bytes from the operating system."""
    return os.urandom(count)
