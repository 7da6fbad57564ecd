"""Truncated SVD: the best approximation of a matrix by one of rank r (Eckart & Young 1936), ``4 r (p + q)`` bytes.

H-FL sends features so (Yang 2021, IJCAI); the survey describes it for weights, and FedKD uses it for changes.
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
class SVD(Codec):
    """Matrices whose factors are fewer numbers; all other tensors go as they are."""

    rank: int = field(default=4, metadata=doc("rank of what is sent"))
    feedback: bool = field(default=True, metadata=doc("what is left out is added to the next message"))

    key: ClassVar[str] = "svd"
    roles: ClassVar[tuple[str, ...]] = CHANGES
    steps: ClassVar[tuple[str, ...]] = ("transform",)
    summary: ClassVar[str] = "matrices as the two factors of their best approximation of a rank"
    paper: ClassVar[str] = "Eckart & Young 1936; Yang 2021 (H-FL), IJCAI; Wu et al. 2022 (FedKD)"

    def __post_init__(self) -> None:
        super().__post_init__()
        lowrank.check_rank(self.rank)

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        return lowrank.factored(tree, self.rank, self.name("factors"), self._factor)

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        return lowrank.multiplied(tree, self.rank, self.name("factors"), meta)

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        return lowrank.outlined(tree, self.rank, self.name("factors"))

    def _factor(self, name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        # the values are shared out evenly, so that a quantiser after this meets factors of one size
        root = values[: self.rank].sqrt()
        return left[:, : self.rank] * root, right[: self.rank].T * root
