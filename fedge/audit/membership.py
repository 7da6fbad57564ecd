"""Membership inference: was a row among those that a model was trained on?

The threshold attack says yes where the loss is low (Yeom et al. 2018, arXiv 1709.01604). LiRA (Carlini et al. 2022,
arXiv 2112.03570) compares a row's confidence with what shadow models say that saw it and that did not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.core.method import Rows
from fedge.core.task import IGNORE, Task

Predict = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


@torch.no_grad()
def losses(model: nn.Module, rows: Rows, task: Task, predict: Predict, size: int = 64) -> np.ndarray:
    """The loss of each row, ``[rows]``; of language modelling the mean over its labelled positions."""
    model.eval()
    found = []
    for batch in rows.chunks(size):
        logits = predict(model, task.inputs(batch))
        flat, labels = task.aligned(logits, batch["labels"])
        each = functional.cross_entropy(flat.float(), labels, ignore_index=IGNORE, reduction="none")
        each, kept = each.view(len(batch["labels"]), -1), (labels != IGNORE).view(len(batch["labels"]), -1)
        found.append(each.sum(1) / kept.sum(1).clamp_min(1))
    return torch.cat(found).numpy().astype(np.float64)


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """The probability that a member scores above another row, ties half; 0.5 is guessing."""
    ordered = np.concatenate([members, others])
    _, inverse, counts = np.unique(ordered, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = ((ends - counts + 1 + ends) / 2)[inverse]
    above = ranks[: len(members)].sum() - len(members) * (len(members) + 1) / 2
    return float(above / (len(members) * len(others)))


def tpr_at(members: np.ndarray, others: np.ndarray, fpr: float = 0.01) -> float:
    """The share of members found at a threshold that takes at most ``fpr`` of the others for members."""
    allowed = int(np.floor(fpr * len(others)))
    threshold = np.sort(others)[::-1][allowed]
    return float((members > threshold).mean())


def confidence(losses_: np.ndarray) -> np.ndarray:
    """``log(p / (1 − p))`` of the right label, which is near a Gaussian, from its loss ``−log p``."""
    p = np.clip(np.exp(-losses_), 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)


def lira(target: np.ndarray, shadows: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The log likelihood ratio of each row being a member, ``[rows]``, with one variance for all (few shadows).

    target: the audited model's confidence ``[rows]``; shadows: the shadow models' ``[models, rows]``; inside: whether a
    shadow was trained on a row. Every row must be inside of one shadow and outside of another.
    """
    of = np.where(inside, shadows, np.nan), np.where(inside, np.nan, shadows)
    means = [np.nanmean(one, axis=0) for one in of]
    spread = [np.sqrt(np.nanmean((one - mean) ** 2)) + 1e-6 for one, mean in zip(of, means, strict=True)]
    fits = [-0.5 * ((target - mean) / width) ** 2 - np.log(width) for mean, width in zip(means, spread, strict=True)]
    return fits[0] - fits[1]
