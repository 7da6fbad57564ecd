"""The one training loop. Methods vary it by a ``loss`` and by ``after_backward``; none has a loop of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn

from fedge.core.task import IGNORE

Batch = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


class Spans(Protocol):
    """What the loop tells of its progress: the phase that is under way."""

    def span(self, name: str) -> AbstractContextManager[None]: ...


class _Silent:
    def span(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class Fitted:
    """What a call of ``fit`` did: rows seen, steps taken, and the mean of the loss over the steps (a 0-d tensor)."""

    rows: int
    steps: int
    loss: Tensor


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    steps: int,
    micro_batch: int | None = None,
    after_backward: Callable[[nn.Module], None] | None = None,
    spans: Spans | None = None,
) -> Fitted:
    """Train ``model`` for ``steps`` optimizer steps on ``batches``.

    ``loss(model, batch)`` returns the mean over the batch's rows, or over its labelled positions. ``micro_batch``
    splits each batch into pieces of at most that many rows and accumulates their gradients, which lowers the memory of
    activations and changes the gradient only by rounding. ``after_backward(model)`` runs once a step, after the whole
    gradient is there and before the optimizer moves. Nothing here reads a tensor's value, so that the loop can be
    traced on fake tensors.
    """
    spans = spans or _Silent()
    model.train()
    rows = taken = 0
    total = torch.zeros(())
    for batch in islice(batches, steps):
        for piece in _pieces(batch, micro_batch):
            with spans.span("forward"):
                value = loss(model, piece)
            share = 1.0 if piece is batch else _share(piece, batch)
            with spans.span("backward"):
                torch.autograd.backward(value if piece is batch else value * share)
            total = total + value.detach() * share
        if after_backward is not None:
            after_backward(model)
        with spans.span("optimizer"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        rows += _rows(batch)
        taken += 1
    return Fitted(rows, taken, total / max(taken, 1))


def squares(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    rows: Iterable[Batch],
    *,
    loss: Loss,
    count: int,
    spans: Spans | None = None,
) -> list[Tensor]:
    """The mean over ``count`` batches, each of one row, of the squared gradient of ``loss``: a tensor a parameter.

    The model runs without dropout. A parameter that the loss does not depend on gets zeros.
    """
    spans = spans or _Silent()
    model.eval()
    found = [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
    for row in islice(rows, count):
        with spans.span("forward"):
            value = loss(model, row)
        with spans.span("backward"):
            gradients = torch.autograd.grad(value, list(parameters), allow_unused=True)
        for total, gradient in zip(found, gradients, strict=True):
            if gradient is not None:
                total.addcmul_(gradient, gradient, value=1 / count)
    return found


def pull(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Back-propagate gradients that were computed elsewhere (the other half of a split model) into ``outputs``."""
    torch.autograd.backward(list(outputs), list(gradients))


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _share(piece: Batch, batch: Batch) -> float | Tensor:
    """How much of the batch's mean a piece's mean is: by labels where they stand at positions, by rows otherwise."""
    labels = batch.get("labels")
    if labels is None or labels.dim() < 2:
        return _rows(piece) / _rows(batch)
    return (piece["labels"] != IGNORE).sum() / (labels != IGNORE).sum()


def _pieces(batch: Batch, size: int | None) -> Iterator[Batch]:
    whole = _rows(batch)
    if not size or size >= whole:
        yield batch
        return
    for start in range(0, whole, size):
        yield {name: column[start : start + size] for name, column in batch.items()}
