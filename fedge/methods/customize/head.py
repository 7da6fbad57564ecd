"""Head only: the body is frozen, the classifier is trained on the devices and averaged.

The survey's example of an additive layer at the end (arXiv 2509.05142, figure 5a). The body runs without dropout, so a
row's features never change while nobody trains the body: a device computes them once and keeps them, and training on
what it kept gives the same bits as training through the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedge.core.fit import Batch
from fedge.core.method import Card, Device, Method, Rows
from fedge.core.payload import Payload, Tree
from fedge.data import rows as data
from fedge.methods.tuning import Tuning, doc, enter, leave
from fedge.models.anatomy import anatomy
from fedge.models.names import trainable


@dataclass(frozen=True, kw_only=True)
class Head(Tuning):
    """Only the classifier; gradients never enter the body, so no activations are kept."""

    lr: float = field(default=1e-2, metadata=doc("learning rate on the device"))
    cache: bool = field(default=True, metadata=doc("keep each row's features while nobody trains the body"))

    card: ClassVar[Card] = Card(
        name="Head only (linear probe)",
        summary="the body stays frozen, the classifier is trained and averaged",
        paper="linear probing; the survey's figure 5a (arXiv 2509.05142)",
        stages=("customize",),
        path="customize/fine-tune/additive",
        leaves=("the change of the classifier", "number of rows"),
        deviations=("features are kept between rounds; with 'cache: false' they are computed at every step",),
        tasks=("image-classification", "text-classification"),
        alternatives=("lora", "bitfit"),
        family="tensors",
        claims=("alone",),
    )
    linear: ClassVar[bool] = True

    def variants(self) -> Sequence[Method]:
        return [self, replace(self, micro_batch=max(1, self.batch // 4))]

    def among_others(self) -> Tuning:
        return replace(self, cache=False)

    def build(self, base: nn.Module) -> nn.Module:
        return self.mark(base, lambda name, layer: False)

    def client(self, dev: Device, down: Payload) -> Payload:
        start = enter(dev, down["weights"])
        parts = anatomy(dev.model)

        def kept(model: nn.Module, batch: Batch) -> Tensor:
            return dev.task.loss_of(parts.head(batch["features"]), batch["labels"])

        def through(model: nn.Module, batch: Batch) -> Tensor:
            return kept(model, {"features": features(model, dev.task.inputs(batch)), "labels": batch["labels"]})

        frozen = set(down["weights"]) <= set(trainable(dev.model))
        if self.cache and frozen:
            self.train(dev, kept, start, self.kept_rows(dev))
        else:
            self.train(dev, through, start)
        return leave(dev, start)

    def kept_rows(self, dev: Device) -> Rows:
        """The device's rows as features and labels, computed in its first round and kept in its state."""
        if "features" not in dev.state:
            # without gradients, twice the rows take less memory than a step's
            size = 2 * (self.micro_batch or self.batch)
            found: list[Tree] = [
                {"features": features(dev.model, dev.task.inputs(chunk)), "labels": chunk["labels"]}
                for chunk in dev.data.chunks(size)
            ]
            dev.state.update({name: torch.cat([piece[name] for piece in found]) for name in found[0]})
        return data.Rows({name: dev.state[name] for name in ("features", "labels")}, dev.task.kind)


@torch.no_grad()
def features(model: nn.Module, inputs: Batch) -> Tensor:
    """What the head is given for a batch, ``[rows, width]``, from a body without dropout."""
    parts = anatomy(model)
    parts.core.eval()
    hidden = parts.embed(inputs)
    mask = parts.mask(inputs, hidden)
    for index in range(parts.depth):
        hidden = parts.block(index, hidden, mask)
    return parts.pool(parts.finish(hidden), inputs)
