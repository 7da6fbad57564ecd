"""PowerSGD: low rank by one step of power iteration a round, begun where the last round's ended (arXiv 1905.13727).

``P = orth(M Q)``, ``Q = MᵀP``, sent as ``P`` and ``Q``: ``4 r (p + q)`` bytes and two thin products instead of a
decomposition. The paper's workers average ``P`` before they make ``Q``, two messages each way a step; a device here
stands alone (with one worker the two are the same), so it sends both at once and the server averages the products.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedge.codecs import lowrank
from fedge.codecs.codec import CHANGES, Codec, Meta
from fedge.core.fields import doc
from fedge.core.method import State
from fedge.core.payload import Tree


@dataclass(frozen=True, kw_only=True)
class PowerSGD(Codec):
    """Matrices whose factors are fewer numbers; all other tensors go as they are."""

    rank: int = field(default=4, metadata=doc("rank of what is sent"))
    feedback: bool = field(default=True, metadata=doc("what is left out is added to the next message"))

    key: ClassVar[str] = "powersgd"
    roles: ClassVar[tuple[str, ...]] = CHANGES
    steps: ClassVar[tuple[str, ...]] = ("transform",)
    summary: ClassVar[str] = "matrices as two factors, found by a step of power iteration a round"
    paper: ClassVar[str] = "Vogels et al. 2019, arXiv 1905.13727; each device alone, without averaging its first factor"

    def __post_init__(self) -> None:
        super().__post_init__()
        lowrank.check_rank(self.rank)

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        def factor(name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
            begun = state.get(name)
            if begun is None or begun.shape != (matrix.shape[1], self.rank):
                begun = torch.randn(matrix.shape[1], self.rank, generator=rng)
            left = torch.linalg.qr(matrix @ begun).Q
            right = matrix.T @ left
            if bool(right.any()):  # nothing can be learnt from a matrix of zeros
                state[name] = right
            return left, right

        return lowrank.factored(tree, self.rank, self.name("factors"), factor)

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        return lowrank.multiplied(tree, self.rank, self.name("factors"), meta)

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        return lowrank.outlined(tree, self.rank, self.name("factors"))
