"""Examples as a model takes them: compact columns that many views share, turned into batches when they are asked for.

A column is stored as small as it can be (uint8 images, int32 tokens, uint8 masks) and becomes float32 or int64 in the
batch. A view that ``take`` gives holds an index and no copy, so a hundred devices cost one copy of the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedge.core.rng import generator as seeded
from fedge.core.task import IGNORE
from fedge.errors import ConfigError

Batch = Mapping[str, Tensor]
Index = Tensor | np.ndarray | Sequence[int]

#: Columns that have a value for each position of a text.
_TEXT = ("input_ids", "attention_mask", "token_type_ids")
_CHOSEN, _AS_MASK, _AS_OTHER = 0.15, 0.8, 0.1


@dataclass(frozen=True)
class Pixels:
    """How a stored image becomes the model's input: ``(x * scale - mean) / std``, channel by channel."""

    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def apply(self, images: Tensor) -> Tensor:
        """Images ``[n, c, h, w]`` of any type -> float32."""
        images = images.to(torch.float32)
        if self.scale != 1.0:
            images = images * self.scale
        if self.mean:
            shape = (1, -1, 1, 1)
            images = (images - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)
        return images


@dataclass(frozen=True)
class Masking:
    """What masked language modelling needs to know of the tokenizer."""

    token: int
    vocabulary: int
    special: tuple[int, ...]

    @cached_property
    def ordinary(self) -> Tensor:
        """``[vocabulary]``, true for tokens that may be masked or stand in for another."""
        kept = torch.ones(self.vocabulary, dtype=torch.bool)
        kept[[token for token in self.special if token < self.vocabulary]] = False
        return kept

    @cached_property
    def substitutes(self) -> Tensor:
        return self.ordinary.nonzero().flatten()

    def apply(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens int64 ``[n, length]`` -> (tokens with 15 % disturbed, labels that are IGNORE everywhere else).

        Of the chosen positions 80 % become the mask token, 10 % another token, 10 % stay. A row in which chance
        chose nothing has one position chosen all the same: a batch without labels would have no loss.
        """
        # one draw for everything, row by row, so that a row's mask does not depend on the size of its chunk
        chance = torch.rand((len(tokens), 3, tokens.shape[1]), generator=generator)
        order = torch.where(self.ordinary[tokens], chance[:, 0], torch.ones(()))
        chosen = order < _CHOSEN
        first = order.argmin(dim=1, keepdim=True)
        chosen.scatter_(1, first, order.gather(1, first) < 1)
        labels = torch.where(chosen, tokens, IGNORE)
        number = (chance[:, 2] * len(self.substitutes)).long().clamp_(max=len(self.substitutes) - 1)
        other = chosen & (chance[:, 1] >= _AS_MASK) & (chance[:, 1] < _AS_MASK + _AS_OTHER)
        disturbed = torch.where(chosen & (chance[:, 1] < _AS_MASK), self.token, tokens)
        return torch.where(other, self.substitutes[number], disturbed), labels


class Rows:
    """A set of examples; fulfils ``fedge.core.method.Rows``.

    columns: stored tensors by input name, all with the same number of rows; ``labels`` (int, ``[n]``) among them for
    classification, and absent for language modelling, where the batch's labels come from its tokens. kind: the task's
    kind. pixels: how a stored image becomes an input. masking: for masked-lm. index: the rows of this view, None: all.
    """

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        kind: str,
        *,
        pixels: Pixels | None = None,
        masking: Masking | None = None,
        index: Tensor | None = None,
    ):
        self.columns = dict(columns)
        self.kind = kind
        self.pixels = pixels
        self.masking = masking
        self.index = index
        sizes = {len(column) for column in self.columns.values()}
        if len(sizes) != 1:
            raise ValueError(f"columns of different lengths: {sorted(sizes)}")
        self._stored = sizes.pop()

    def __len__(self) -> int:
        return self._stored if self.index is None else len(self.index)

    def __repr__(self) -> str:
        return f"Rows({len(self)} × {', '.join(self.columns)}, {self.kind})"

    @property
    def labels(self) -> Tensor | None:
        """The class of each row, int64 ``[n]``; None for language modelling."""
        labels = self.columns.get("labels")
        if labels is None:
            return None
        return (labels if self.index is None else labels[self.index]).long()

    @property
    def nbytes(self) -> int:
        """Bytes that these rows take as they are stored (in memory that views share)."""
        return len(self) * sum(
            column[:1].numel() * column.element_size() for column in self.columns.values() if len(column)
        )

    def take(self, indices: Index) -> Rows:
        """A view of some rows, counted within this one; shares the columns' memory."""
        picked = torch.as_tensor(np.asarray(indices), dtype=torch.int64)
        if len(picked) and (int(picked.min()) < 0 or int(picked.max()) >= len(self)):
            raise IndexError(f"row out of range 0..{len(self) - 1}")
        if self.index is not None:
            picked = self.index[picked]
        return Rows(self.columns, self.kind, pixels=self.pixels, masking=self.masking, index=picked)

    def cut(self, share: float) -> Rows:
        """A view of the beginning of each text: that share of its positions, rounded up, two at least.

        Columns that hold no text (images, labels, features) stay whole. Shares the columns' memory.
        """
        columns = {
            name: column[:, : max(2, math.ceil(share * column.shape[1] - 1e-9))] if name in _TEXT else column
            for name, column in self.columns.items()
        }
        return Rows(columns, self.kind, pixels=self.pixels, masking=self.masking, index=self.index)

    def gather(self) -> Rows:
        """The same rows in columns of their own (as they are stored on disk)."""
        if self.index is None:
            return self
        columns = {name: column[self.index] for name, column in self.columns.items()}
        return Rows(columns, self.kind, pixels=self.pixels, masking=self.masking)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Endless batches of exactly ``min(size, len(self))`` rows, so that every batch has the same shapes.

        Walks through one random order after another; a batch that reaches the end of one order goes on in the next
        (and may then hold a row twice). Masks of masked-lm come from the same generator.
        """
        if size < 1:
            raise ValueError("a batch needs at least one row")
        if not len(self):
            raise ConfigError("there are no rows to train on")
        size = min(size, len(self))
        order = torch.randperm(len(self), generator=generator)
        while True:
            if len(order) < size:
                order = torch.cat([order, torch.randperm(len(self), generator=generator)])
            yield self._batch(order[:size], generator)
            order = order[size:]

    def chunks(self, size: int) -> Iterator[Batch]:
        """All rows once, in order; the last chunk may be smaller. Masks of masked-lm are the same every time."""
        fixed = seeded("data", "chunks")
        for start in range(0, len(self), size):
            yield self._batch(torch.arange(start, min(start + size, len(self))), fixed)

    def spec(self, size: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each tensor in a batch of ``min(size, len(self))`` rows."""
        size = min(size, len(self))
        shapes = {}
        for name, column in self.columns.items():
            kind = torch.float32 if self._is_image(name) else torch.int64
            shapes[name] = ((size, *column.shape[1:]), kind)
        if "labels" not in shapes:
            shapes["labels"] = shapes["input_ids"]
        return shapes

    def _is_image(self, name: str) -> bool:
        return name != "labels" and (self.pixels is not None or self.columns[name].is_floating_point())

    def _batch(self, positions: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        stored = positions if self.index is None else self.index[positions]
        batch = {}
        for name, column in self.columns.items():
            values = column[stored]
            batch[name] = (self.pixels or Pixels()).apply(values) if self._is_image(name) else values.long()
        if self.kind == "masked-lm":
            assert self.masking is not None
            batch["input_ids"], batch["labels"] = self.masking.apply(batch["input_ids"], generator)
        elif self.kind == "causal-lm":
            batch["labels"] = batch["input_ids"].clone()
        return batch
