"""Noise: Gaussian of a standard deviation, and the discrete Gaussian for sums in a finite ring.

From a run's seed it repeats bit for bit. From the operating system's randomness it can't be foretold by anybody who
knows the seed; that is what a federation beyond one machine needs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedge.core.payload import Tree


def gaussian(shape: torch.Size | tuple[int, ...], std: float, generator: torch.Generator | None) -> Tensor:
    """``N(0, std²)`` as float32; ``generator`` None: from the operating system."""
    if generator is not None:
        return torch.randn(shape, generator=generator).mul_(std)
    count = math.prod(shape)
    pairs = (count + 1) // 2
    # Box-Muller on 53 random bits each; one minus, so that the logarithm never meets zero
    uniform = (np.frombuffer(os.urandom(16 * pairs), dtype=np.uint64) >> np.uint64(11)).reshape(2, -1) / float(1 << 53)
    radius, angle = np.sqrt(-2.0 * np.log(1.0 - uniform[0])), 2.0 * np.pi * uniform[1]
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return torch.from_numpy((both * std).astype(np.float32)).reshape(shape)


def add_gaussian(tree: Tree, std: float, generator: torch.Generator | None) -> Tree:
    """The tree with noise on every coordinate, in the order of its names."""
    return {name: tree[name] + gaussian(tree[name].shape, std, generator).to(tree[name].dtype) for name in sorted(tree)}


def seeded(generator: torch.Generator | None) -> np.random.Generator:
    """A generator of numpy's (PCG64, 128 bits of seed) from torch's, or from the operating system."""
    if generator is None:
        return np.random.default_rng(int.from_bytes(os.urandom(32), "little"))
    words = torch.randint(0, 1 << 62, (2,), generator=generator).tolist()
    return np.random.default_rng(words)


def discrete_gaussian(count: int, std: float, rng: np.random.Generator) -> np.ndarray:
    """``count`` integers with ``P[x] ∝ exp(−x² / 2σ²)`` (Canonne, Kamath & Steinke 2020, arXiv 2004.00010).

    Their algorithm 3: by rejection from a discrete Laplace of scale ``t = ⌊σ⌋ + 1``: ``y`` is accepted with
    probability ``exp(−(|y| − σ²/t)² / 2σ²)``. In double precision, where the paper's sampler is exact.
    """
    if std <= 0:
        return np.zeros(count, dtype=np.int64)
    scale = math.floor(std) + 1
    found = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        size = int((count - done) * 1.6) + 32
        # |y| of a discrete Laplace is geometric; a negative zero is drawn again
        magnitude = np.floor(rng.exponential(scale, size)).astype(np.int64)
        sign = rng.integers(0, 2, size, dtype=np.int64)
        drawn = np.where(sign == 1, -magnitude, magnitude)
        accept = rng.random(size) < np.exp(-((magnitude - std * std / scale) ** 2) / (2 * std * std))
        taken = drawn[accept & ~((sign == 1) & (magnitude == 0))][: count - done]
        found[done : done + len(taken)] = taken
        done += len(taken)
    return found


def norm(parts: Mapping[str, Tree]) -> Tensor:
    """The Euclidean norm of everything that a payload holds, a 0-d tensor of float64."""
    squares = [tensor.to(torch.float64).square().sum() for tree in parts.values() for tensor in tree.values()]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=torch.float64)


def clipped(parts: Mapping[str, Tree], bound: float) -> tuple[dict[str, Tree], Tensor]:
    """``x · min(1, S / ‖x‖)`` over all parts together, and the norm ``‖x‖`` before it."""
    size = norm(parts)
    factor = (bound / size.clamp_min(1e-300)).clamp(max=1.0)
    scaled = {
        role: {name: tensor * factor.to(tensor.dtype) for name, tensor in tree.items()} for role, tree in parts.items()
    }
    return scaled, size
