"""Small models with exits, trained in place for some steps: what ``tools.export`` exports besides a run's model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedge.core.fit import Batch, fit
from fedge.core.rng import generator
from fedge.data.encode import encode
from fedge.data.rows import Rows
from fedge.data.source import read
from fedge.models.exits import MultiExit
from fedge.models.load import Loaded, load

#: Test rows of the language model, each a window of tokens.
_WINDOWS = 200


@dataclass(frozen=True)
class Case:
    """A model with exits, what it was loaded as, and its test rows."""

    name: str
    model: MultiExit
    loaded: Loaded
    rows: Rows


def digits() -> Case:
    """A vision transformer of four blocks on 8 × 8 digits."""
    return _trained("vit-nano on digits", "vit-nano", "image-classification", "digits", Path(), steps=200)


def images(data: Path) -> Case:
    """The same kind of model on a part of CIFAR-10."""
    options = {"image_size": 32, "channels": 3, "patch": 4}
    return _trained(
        "vit-nano on cifar10_subset",
        "vit-nano",
        "image-classification",
        "cifar10_subset.npz",
        data,
        steps=120,
        options=options,
    )


def text(data: Path) -> Case:
    """A small language model on Shakespeare's plays."""
    return _trained(
        "gpt-nano on tiny_shakespeare",
        "gpt-nano",
        "causal-lm",
        "tiny_shakespeare/input.txt",
        data,
        steps=120,
        most=_WINDOWS,
    )


def _trained(
    name: str,
    base: str,
    task: str,
    dataset: str,
    folder: Path,
    *,
    steps: int,
    options: dict[str, Any] | None = None,
    most: int | None = None,
) -> Case:
    raw = read(dataset, folder=folder, seed=0, task=task)
    generative = task == "causal-lm"
    loaded = load(base, task, classes=None if generative else len(raw.names), options=options, seed=1)
    data = encode(raw, loaded.preprocessor, loaded.task, 64 if generative else 0, loaded.input_names)
    torch.manual_seed(2)
    model = MultiExit(loaded.model, (2,), loaded.task.classes)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(**loaded.task.inputs(batch))
        return torch.stack([loaded.task.loss_of(each, batch["labels"]) for each in logits]).sum()

    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    fit(model, data.train.batches(32, generator("tools", "export")), loss=loss, optimizer=optimizer, steps=steps)
    rows = data.test if most is None or len(data.test) <= most else data.test.take(range(most))
    return Case(name, model.requires_grad_(False).eval(), loaded, rows)
