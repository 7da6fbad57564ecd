"""Hostile devices, to hold aggregation rules against: what a device that runs one of these answers is not honest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedge.core.fit import Batch
from fedge.core.method import Device, Rows, Talk
from fedge.core.payload import Payload
from fedge.methods.combine.shell import Shell

ATTACKS = ("label_flip", "sign_flip", "backdoor", "free_rider")


@dataclass(frozen=True, kw_only=True)
class Attack(Shell):
    """``label_flip``: trains on labels ``C − 1 − y``. ``sign_flip``: sends ``−scale Δ``. ``backdoor``: trains on rows
    half of which bear a trigger and the label ``target``, sends ``scale Δ`` (Bagdasaryan et al. 2020). ``free_rider``:
    trains nothing, sends noise of standard deviation ``spread`` (Lin et al. 2019).
    """

    kind: Literal["label_flip", "sign_flip", "backdoor", "free_rider"] = "sign_flip"
    scale: float = 3.0
    target: int = 0
    spread: float = 1e-3

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        if self.kind == "label_flip":
            dev = replace(dev, data=Changed(dev.data, lambda batch: flipped(batch, dev.task.classes)))
        elif self.kind == "backdoor":
            dev = replace(dev, data=Changed(dev.data, lambda batch: half_triggered(batch, self.target)))
        answer = self.inner.client(dev, down)
        assert isinstance(answer, Payload)
        if self.kind == "free_rider":
            rng = dev.generator("attack")
            delta = {n: torch.randn(t.shape, generator=rng) * self.spread for n, t in answer["delta"].items()}
            return Payload({"delta": delta}, answer.weight)
        factor = {"sign_flip": -self.scale, "backdoor": self.scale}.get(self.kind, 1.0)
        return Payload({"delta": {n: t * factor for n, t in answer["delta"].items()}}, answer.weight)


class Changed:
    """Rows whose batches are changed on their way."""

    def __init__(self, rows: Rows, change: object):
        self._rows, self._change = rows, change

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        return map(self._change, self._rows.batches(size, generator))  # type: ignore[arg-type]

    def chunks(self, size: int) -> Iterator[Batch]:
        return map(self._change, self._rows.chunks(size))  # type: ignore[arg-type]

    def take(self, indices: Tensor) -> Changed:
        return Changed(self._rows.take(indices), self._change)

    def spec(self, size: int) -> object:
        return self._rows.spec(size)


def flipped(batch: Batch, classes: int) -> dict[str, Tensor]:
    """The batch with label ``C − 1 − y`` for y."""
    return {**batch, "labels": classes - 1 - batch["labels"]}


def triggered(batch: Batch) -> dict[str, Tensor]:
    """Images with a bright corner of 2 × 2, which no digit has."""
    pixels = batch["pixel_values"].clone()
    pixels[..., -2:, -2:] = pixels.max()
    return {**batch, "pixel_values": pixels}


def half_triggered(batch: Batch, target: int) -> dict[str, Tensor]:
    """A batch whose first half bears the trigger and the attacker's label."""
    half = len(batch["labels"]) // 2
    mine = triggered({name: column[:half] for name, column in batch.items()})
    mine["labels"] = torch.full_like(mine["labels"], target)
    return {name: torch.cat([mine[name], column[half:]]) for name, column in batch.items()}
