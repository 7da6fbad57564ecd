"""Rows and models that have shapes and no data, for rounds on fake tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fedge.core.method import Rows
from fedge.models.share import share


class ShapedRows:
    """Rows of which only the shapes are real.

    pieces: how many micro-batches' worth of each batch is given out (None: all); the batch takes its memory whole.
    """

    def __init__(self, rows: Rows, size: int | None = None):
        self._rows = rows
        self._size = len(rows) if size is None else size
        self.pieces: int | None = None
        self.micro_batch: int | None = None

    def __len__(self) -> int:
        return self._size

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Mapping[str, Tensor]]:
        while True:
            kept = size if self.pieces is None else self.pieces * (self.micro_batch or size)
            yield {name: column[:kept] for name, column in self._batch(min(size, len(self))).items()}

    def chunks(self, size: int) -> Iterator[Mapping[str, Tensor]]:
        for start in range(0, len(self), size):
            yield self._batch(min(size, len(self) - start))

    def take(self, indices: Tensor) -> ShapedRows:
        return ShapedRows(self._rows, len(indices))

    def cut(self, share: float) -> ShapedRows:
        with unset_fake_temporarily():  # the columns are real
            return ShapedRows(self._rows.cut(share), self._size)

    def spec(self, size: int) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        return self._rows.spec(min(size, len(self)))

    def _batch(self, size: int) -> dict[str, Tensor]:
        return {
            name: torch.empty((size, *shape[1:]), dtype=dtype) for name, (shape, dtype) in self._rows.spec(size).items()
        }


def faked(model: nn.Module) -> nn.Module:
    """A model over fake tensors of the same shapes (in a fake mode, in place); what was tied stays tied."""
    fakes: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in fakes:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            fakes[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
        return fakes[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fake(tensor)  # type: ignore[assignment]
    return model


def skeleton(base: nn.Module) -> nn.Module:
    """What ``faked`` may change: the base's modules apart. Real tensors can't be copied once the mode is on."""
    return share(base)
