"""How good a model's features are without any head: each row is told by the rows whose features are nearest.

The protocol of self-supervised papers: cosine similarity s to a bank of labelled rows, the k nearest vote for their
label with ``exp(s / 0.1)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.models.features import features

#: How sharply near rows count more than far ones.
TEMPERATURE = 0.1
#: Rows of a bank from which on 200 neighbours vote instead of 20.
_MANY = 2000


class Neighbours:
    """A bank of rows whose labels are known."""

    def __init__(self, model: nn.Module, bank: Iterable[Mapping[str, Tensor]], classes: int):
        """``bank``: batches with their labels; the model is put into evaluation mode."""
        found = [(features(model, _inputs(batch)), batch["labels"]) for batch in bank]
        vectors, labels = (torch.cat(column) for column in zip(*found, strict=True))
        self.vectors = functional.normalize(vectors, dim=-1)
        self.labels = functional.one_hot(labels, classes).float()
        self.k = min(len(labels), 200 if len(labels) >= _MANY else 20)

    @torch.no_grad()
    def predict(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """The logarithm of each class's share of the votes, ``[rows, classes]``."""
        seen = functional.normalize(features(model, inputs), dim=-1)
        near = (seen @ self.vectors.T).topk(self.k, dim=1)
        votes = torch.exp((near.values - near.values[:, :1]) / TEMPERATURE)
        counted = (votes[:, :, None] * self.labels[near.indices]).sum(1)
        return (counted / votes.sum(1, keepdim=True)).clamp_min(1e-6).log()

    @property
    def spread(self) -> float:
        """The mean over dimensions of the deviation of features of unit length: near ``1/√width`` where healthy, near 0
        where all rows have come to look alike."""
        return float(self.vectors.std(0).mean())


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: column for name, column in batch.items() if name != "labels"}
