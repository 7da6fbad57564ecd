"""Distillation: what the methods share that fit one model to what others say of the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.core.fit import Batch, fit
from fedge.core.method import Device, Rows, Server
from fedge.core.task import Task
from fedge.errors import MethodError
from fedge.methods.tuning import start_of
from fedge.models.names import load, trainable


def shared_rows(srv: Server, method: str) -> Rows:
    """The rows that server and devices share. Raises MethodError, naming the method, where there are none."""
    if srv.public is None or not len(srv.public):
        raise MethodError(f"{method} needs rows that all share", hint="set data.public: 256, say")
    return srv.public


def own_model(dev: Device) -> nn.Module:
    """The model that stays on the device, with the weights that it kept; before its first round those of the base."""
    load(dev.model, dev.state.get("weights", {}))
    return dev.model


def train_own(dev: Device, *, lr: float, batch: int, steps: int, micro_batch: int | None) -> None:
    """Train ``dev.model`` on the device's own rows by Adam; its weights are kept, its loss is counted."""
    fitted = fit(
        dev.model,
        dev.data.batches(batch, dev.generator("batches")),
        loss=dev.task.loss,
        optimizer=torch.optim.Adam(trainable(dev.model).values(), lr=lr),
        steps=steps,
        micro_batch=micro_batch,
        spans=dev.meter,
    )
    dev.meter.count("loss", fitted.loss)
    dev.state["weights"] = start_of(dev.model)


@torch.no_grad()
def logits_on(model: nn.Module, task: Task, rows: Rows, size: int = 64) -> Tensor:
    """The model's logits ``[rows, classes]`` on rows in their order, without dropout."""
    model.eval()
    return torch.cat([model(**task.inputs(chunk)).logits for chunk in rows.chunks(size)])


def beside(rows: Rows, said: Mapping[str, Tensor], size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Endless batches of ``min(size, len(rows))`` rows without labels, with what was ``said`` of each beside them.

    said: tensors ``[rows, …]`` by the name of their column. Each walk through the rows has an order of its own.
    """
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for start in range(0, len(rows) - size + 1, size) or (0,):
            index = order[start : start + size]
            batch = next(rows.take(index).chunks(size))
            inputs = {name: column for name, column in batch.items() if name != "labels"}
            yield {**inputs, **{name: tensor[index] for name, tensor in said.items()}}


def kd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T² KL(softmax(teacher / T) ‖ softmax(student / T))``: mean over rows, sum over classes (Hinton et al. 2015)."""
    mine, theirs = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
    return temperature**2 * functional.kl_div(mine, theirs, reduction="batchmean", log_target=True)
