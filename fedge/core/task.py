"""What a model is asked to do: the loss that trains it and the figures that judge it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

TASKS = ("image-classification", "text-classification", "causal-lm", "masked-lm")
#: The label of a position that does not count.
IGNORE = -100


@dataclass(frozen=True)
class Task:
    """One of ``TASKS``; ``classes`` is the number of labels, or the vocabulary's size for language modelling."""

    kind: str
    classes: int

    @property
    def generative(self) -> bool:
        """Whether labels stand at token positions rather than at rows."""
        return self.kind in ("causal-lm", "masked-lm")

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch without its labels, as the model's forward takes it."""
        return {name: column for name, column in batch.items() if name != "labels"}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the batch (over its labelled positions for language modelling)."""
        output = model(**self.inputs(batch))
        logits = output if isinstance(output, Tensor) else output.logits
        return self.loss_of(logits, batch["labels"])

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The same from logits ``[rows, classes]`` or ``[rows, positions, vocabulary]``."""
        logits, labels = self.aligned(logits, labels)
        return functional.cross_entropy(logits, labels, ignore_index=IGNORE)

    def aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[n, classes]`` beside the labels ``[n]`` that they must predict."""
        if self.kind == "causal-lm":
            logits, labels = logits[:, :-1], labels[:, 1:]
        return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)


@dataclass(frozen=True, eq=False)
class Calibrated(Task):
    """A task of classes learnt by one device whose rows have them in shares of their own.

    The logit-adjusted loss (Menon et al. 2021, arXiv 2007.07314, eq. 10), with π the shares of the classes among the
    device's rows: ``−log (e^{f_y + τ log π_y} / Σ_c e^{f_c + τ log π_c})``. So the model is not taught how often this
    device meets each class, in which devices differ. lean: ``τ log π``, [classes].
    """

    lean: Tensor

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().loss_of(logits + self.lean, labels)


def calibrated(task: Task, labels: Iterable[Tensor], tau: float) -> Calibrated:
    """``task`` for a device with these ``labels``, tensors of class numbers of any shapes.

    A class that it lacks counts as a hundredth of a row, so that its share is above 0 and it is hardly pushed down.
    """
    counts = torch.full((task.classes,), 0.01)
    for some in labels:
        counts = counts.index_add(0, some.reshape(-1), torch.ones(some.numel()))
    return Calibrated(task.kind, task.classes, tau * torch.log(counts / counts.sum()))


@dataclass
class Score:
    """Running sums over evaluated batches: loss and correct answers over counted labels."""

    loss_sum: float = 0.0
    correct: int = 0
    counted: int = 0

    def add(self, task: Task, logits: Tensor, labels: Tensor) -> Tensor:
        """Take in a batch; returns the predicted class of each aligned label, for callers that compare devices."""
        logits, labels = task.aligned(logits, labels)
        kept = labels != IGNORE
        predicted = logits.argmax(-1)
        loss = functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
        self.loss_sum += float(loss)
        self.correct += int(((predicted == labels) & kept).sum())
        self.counted += int(kept.sum())
        return predicted

    def metrics(self, task: Task) -> dict[str, float]:
        """accuracy (share) and loss (mean); perplexity too for language modelling."""
        if not self.counted:
            return {}
        loss = self.loss_sum / self.counted
        metrics = {"accuracy": self.correct / self.counted, "loss": loss}
        if task.generative:
            metrics["perplexity"] = float(torch.tensor(min(loss, 80.0), dtype=torch.float64).exp())
        return metrics
