"""z-sign: the sign after noise, one bit a number and nothing to remember (Tang et al. 2024, arXiv 2302.02589).

``C(x) = η_z σ sign(x + σ ξ)``. Uniform ξ on [−1, 1] (z → ∞, ``η = 1``) is unbiased where ``|x| ≤ σ``; Gaussian ξ
(z = 1, ``η = √(π/2)``) has the mean ``√(π/2) σ erf(x / √2 σ)``. The paper sets σ by hand in units of the accumulated
gradient and keeps it over the rounds; here it is in units of what is sent, and by default each tensor's own largest
magnitude, which costs four bytes a tensor and leaves the uniform kind unbiased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from fedge.codecs import bits
from fedge.codecs.codec import CHANGES, Codec, Meta, blank, blanks, cut, floats, listed, rest, total
from fedge.codecs.sign import signs, spread
from fedge.core.fields import doc
from fedge.core.method import State
from fedge.core.payload import Tree


@dataclass(frozen=True, kw_only=True)
class ZSign(Codec):
    """Signs of the numbers with noise added."""

    noise: Literal["uniform", "normal"] = field(default="uniform", metadata=doc("distribution of the noise"))
    sigma: float | None = field(default=None, metadata=doc("scale of the noise; each tensor's maximum by default"))

    key: ClassVar[str] = "zsign"
    roles: ClassVar[tuple[str, ...]] = CHANGES
    steps: ClassVar[tuple[str, ...]] = ("quantise",)
    summary: ClassVar[str] = "one bit a number, the sign after noise; unbiased with uniform noise"
    paper: ClassVar[str] = "Tang et al. 2024, arXiv 2302.02589"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise not in ("uniform", "normal"):
            raise ValueError(f"noise is uniform or normal, not {self.noise!r}")
        if self.sigma is not None and self.sigma <= 0:
            raise ValueError(f"sigma must be above 0, not {self.sigma:g}")

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        mine = floats(tree)
        negative, scales = [torch.empty(0, dtype=torch.bool)], torch.zeros(len(mine))
        for place, tensor in enumerate(mine.values()):
            flat = tensor.reshape(-1).float()
            if self.sigma is not None:
                scales[place] = self.sigma
            elif len(flat):
                scales[place] = flat.abs().max()
            if self.noise == "uniform":
                drawn = torch.rand(flat.shape, generator=rng) * 2 - 1
            else:
                drawn = torch.randn(flat.shape, generator=rng)
            negative.append(flat + scales[place] * drawn < 0)
        own = {self.name("signs"): bits.pack(torch.cat(negative), 1)}
        if self.sigma is None:
            own[self.name("scales")] = scales
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        mine, tree = blanks(meta["of"]), dict(tree)
        scales = torch.full((len(mine),), self.sigma) if self.sigma is not None else tree.pop(self.name("scales"))
        eta = 1.0 if self.noise == "uniform" else math.sqrt(math.pi / 2)
        return {**cut(signs(tree.pop(self.name("signs")), mine) * spread(scales * eta, mine), mine), **tree}

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        mine = floats(tree)
        own = {self.name("signs"): blank(torch.uint8, bits.nbytes(total(mine), 1))}
        if self.sigma is None:
            own[self.name("scales")] = blank(torch.float32, len(mine))
        return {**own, **rest(tree, mine)}, {"of": listed(mine)}

    def variance(self, tree: Tree) -> float | None:
        if self.noise == "normal" or self.sigma is not None:
            return None
        # Σ (σ² − x²) ≤ (d − 1) ‖x‖² for each tensor, since σ is one of its numbers
        return max([tensor.numel() for tensor in floats(tree).values() if tensor.numel()], default=1) - 1
