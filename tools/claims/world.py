"""The small real federations on which claims are measured.

``digits``: a ViT of 18 thousand weights is pre-trained on 700 scanned digits; the devices then hold others of them,
turned over their diagonal and inverted, so that the foundation model must really adapt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedge.core.method import Device, Method, Rows
from fedge.core.task import Score, Task
from fedge.data import rows as stored
from fedge.data.partition import label_mix, mix_weights, partition, weighted_accuracy
from fedge.meter.spans import NullMeter
from fedge.models.variant import assemble
from fedge.testing.driver import Driven, start
from tools.claims.pretrain import pretrained_digits

#: Devices, their rounds, local steps and rows in a step, where a claim asks for nothing else.
DEVICES, ROUNDS, STEPS, BATCH = 4, 6, 6, 32
#: Rows that devices hold and share; those beyond are for the test.
DOWNSTREAM = 800


@dataclass(frozen=True)
class World:
    """A pre-trained base with a new head, and the rows of the task that it must be adapted to.

    seed: moves the pre-training, the split, the partition and the head together. upstream: what the base was trained
    on. train, test: what devices hold, and what is kept for the test. public: rows that all share.
    """

    seed: int
    base: nn.Module
    task: Task
    upstream: Rows
    train: stored.Rows
    test: stored.Rows
    public: stored.Rows

    def parts(self, devices: int = DEVICES, alpha: float | None = 0.3) -> dict[str, stored.Rows]:
        """The training rows by device: divided by Dirichlet(alpha) over the labels, evenly for None."""
        labels = _numbers(self.train)
        kind = "iid" if alpha is None else "dirichlet"
        found = partition(labels, None, devices, kind, alpha, self.seed, len(labels))
        return {f"d{number:02}": self.train.take(part) for number, part in enumerate(found)}

    def begin(self, method: Method, rows: Mapping[str, Rows] | None = None, **more: Any) -> Driven:
        """A federation before its first round; ``more`` as for ``fedge.testing.start``."""
        torch.set_num_threads(1)
        held = self.parts() if rows is None else rows
        more.setdefault("public", self.public)
        return start(method, self.base, held, self.task, seed=self.seed, **more)

    def run(self, method: Method, rounds: int = ROUNDS, rows: Mapping[str, Rows] | None = None, **more: Any) -> Driven:
        """``begin`` and that many rounds."""
        return self.begin(method, rows, **more).go(rounds)

    def accuracy(self, driven: Driven) -> float:
        """The share of test rows that the model which the stage leaves gets right."""
        return self.score(driven.final(), driven.server.method)

    @torch.no_grad()
    def score(self, model: nn.Module, method: Method | None = None) -> float:
        """The same for any model; ``method`` predicts where it has a way of its own."""
        found = Score()
        model.eval()
        for batch in self.test.chunks(256):
            found.add(self.task, self._logits(model, method, batch), batch["labels"])
        return found.metrics(self.task)["accuracy"]

    def personal(self, driven: Driven) -> dict[str, float]:
        """Each device's accuracy by its own model (by the common one where it has none), on the test rows reweighted
        to the device's label mix."""
        common = None
        found = {}
        for name, device in driven.devices.items():
            model = driven.personal(name)
            if model is None:
                model = common = driven.final() if common is None else common
            found[name] = self.under_mix(model, device.data, driven.server.variants[name])
        return found

    def alone(self, method: Any, rows: Mapping[str, Rows], steps: int) -> dict[str, float]:
        """Each device's accuracy, by its label mix, after training the method's tensors on its own rows only."""
        found = {}
        for name, held in rows.items():
            built = assemble(method, self.base, self.seed, "stage", 0)
            device = Device(
                name, built.model, built.initial, held, self.task, NullMeter(), seed=(self.seed, "alone", name)
            )
            replace(method, steps=steps).train(device, self.task.loss, {})
            found[name] = self.under_mix(built.model, held, method)
        return found

    @torch.no_grad()
    def under_mix(self, model: nn.Module, held: Rows, method: Method | None = None) -> float:
        """A model's accuracy on the test rows, reweighted to the label mix of a device's rows."""
        model.eval()
        batch = next(self.test.chunks(len(self.test)))
        correct = (self._logits(model, method, batch).argmax(-1) == batch["labels"]).numpy()
        mix = label_mix(_numbers(held), self.task.classes)
        return weighted_accuracy(correct, mix_weights(batch["labels"].numpy(), mix))

    def _logits(self, model: nn.Module, method: Method | None, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = self.task.inputs(batch)
        if method is not None:
            return method.predict(model, inputs)
        output = model(**inputs)
        return output if isinstance(output, Tensor) else output.logits


@cache
def digits(seed: int, layers: int = 2, hidden: int = 32) -> World:
    """The world of the digits for a seed. The pre-training takes some seconds and is kept in the user's cache."""
    torch.set_num_threads(1)
    loaded, upstream, rest = pretrained_digits(seed, layers, hidden)
    cut = DOWNSTREAM - 100
    train, public = rest.take(range(cut)), rest.take(range(cut, DOWNSTREAM))
    return World(seed, loaded.model, loaded.task, upstream, train, rest.take(range(DOWNSTREAM, len(rest))), public)


@cache
def learnt(method: Method, seed: int, rounds: int = ROUNDS) -> float:
    """The digits' accuracy of what a method leaves after some rounds; run once in a process, whatever claims ask."""
    world = digits(seed)
    return world.accuracy(world.run(method, rounds))


@cache
def own(method: Method, seed: int, rounds: int = ROUNDS) -> float:
    """The mean over devices of their own models' accuracy, each under its label mix."""
    world = digits(seed)
    return float(np.mean(list(world.personal(world.run(method, rounds)).values())))


def _numbers(rows: Rows) -> np.ndarray:
    labels = rows.labels  # type: ignore[attr-defined]
    return np.asarray(labels)
