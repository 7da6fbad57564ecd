"""Testing a model on the held-out rows, with all of the host's cores, and each device's figure out of the same pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedge.core.method import Rows
from fedge.core.task import Score, Task

#: Rows in a forward pass.
BATCH = 64

Predict = Callable[[nn.Module, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Tested:
    """metrics: accuracy, loss, … over the rows. correct: per row, 0 or 1, for classification; else None."""

    metrics: dict[str, float]
    correct: np.ndarray | None


@contextmanager
def all_cores() -> Iterator[None]:
    """Let torch use every core that this process may run on, then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def test(model: nn.Module, rows: Rows, task: Task, predict: Predict) -> Tested:
    """Run the model over ``rows`` and judge it."""
    model.eval()
    score = Score()
    correct: list[np.ndarray] = []
    with all_cores():
        for batch in rows.chunks(BATCH):
            predicted = score.add(task, predict(model, task.inputs(batch)), batch["labels"])
            if not task.generative:
                correct.append((predicted == batch["labels"]).numpy())
    return Tested(score.metrics(task), np.concatenate(correct) if correct else None)


def share_of(rows: Rows, count: int | None, seed: int) -> Rows:
    """At most ``count`` of the rows, the same ones every time."""
    if count is None or count >= len(rows):
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows.take(order[:count].sort().values)


def by_device(correct: np.ndarray, labels: np.ndarray, mixes: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Each device's accuracy: the test rows reweighted so that their labels have the device's mix."""
    classes = len(next(iter(mixes.values()), np.zeros(0)))
    hits = np.bincount(labels, weights=correct, minlength=classes)
    seen = np.bincount(labels, minlength=classes)
    rate = np.divide(hits, seen, out=np.zeros(classes), where=seen > 0)
    result = {}
    for device, mix in mixes.items():
        known = np.where(seen > 0, mix, 0.0)
        if known.sum() > 0:
            result[device] = float((known * rate).sum() / known.sum())
    return result
