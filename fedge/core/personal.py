"""A device's own model, where a method has one: how the device judges it by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedge.core.method import Method, Rows
from fedge.core.task import Score, Task

#: Rows in a forward pass, where a method doesn't say how many a device takes at once.
ROWS = 16


def rows_at_once(method: Method) -> int:
    """How many rows a device tests at once: as many as it trains on at once, so that the test needs no more memory."""
    working = method.working(0)
    sizes = (getattr(working, name, None) for name in ("micro_batch", "batch"))
    return next((size for size in sizes if isinstance(size, int)), ROWS)


@torch.inference_mode()
def judged(method: Method, model: nn.Module, rows: Rows, task: Task) -> dict[str, Any]:
    """The model's figures on ``rows``, as JSON. metrics: as for any test. hits, seen: for classification, how many rows
    of each class were right, and how many there are."""
    model.eval()
    score = Score()
    hits, seen = torch.zeros(task.classes, dtype=torch.int64), torch.zeros(task.classes, dtype=torch.int64)
    for batch in rows.chunks(rows_at_once(method)):
        labels = batch["labels"]
        predicted = score.add(task, method.predict(model, task.inputs(batch)), labels)
        if not task.generative:
            hits += _counts(labels[predicted == labels], task.classes)
            seen += _counts(labels, task.classes)
    found: dict[str, Any] = {"metrics": score.metrics(task), "rows": len(rows)}
    return found if task.generative else {**found, "hits": hits.tolist(), "seen": seen.tolist()}


def _counts(labels: Tensor, classes: int) -> Tensor:
    return torch.bincount(labels, minlength=classes)
