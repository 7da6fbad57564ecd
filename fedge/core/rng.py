"""Randomness by hashing: every use names what it is for, and no generator is shared.

A run is bit-equal whatever the number or order of its processes because a random stream depends only on
``(seed, what it is for)`` and never on what was drawn before it.
"""

from __future__ import annotations

import random
from hashlib import blake2b

import torch


def seed_for(*parts: str | int) -> int:
    """A 63-bit seed from the names and numbers that say what the stream is for."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: str | int) -> torch.Generator:
    """A CPU generator of its own for the use that ``parts`` name."""
    return torch.Generator().manual_seed(seed_for(*parts))


def seed_everything(*parts: str | int) -> None:
    """Set the global state of torch and ``random`` (dropout, adapter initialisation) for one named use."""
    seed = seed_for(*parts)
    # torch.manual_seed also queues a call, with a formatted stack, for every kind of accelerator that isn't there
    torch.default_generator.manual_seed(seed)
    if torch.version.cuda is not None:
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
