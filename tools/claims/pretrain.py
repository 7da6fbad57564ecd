"""Foundation models at toy size: trained in one place on other rows than the devices', once on a machine."""

from __future__ import annotations

import copy
import os

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fedge.core.fit import fit
from fedge.core.method import Rows
from fedge.core.rng import generator, seed_everything
from fedge.core.task import Task
from fedge.data import rows as stored
from fedge.data.bundled import digits as scanned
from fedge.models.load import Loaded, load
from tools.claims.source import code, kept_at

#: Digits that pre-train; the rest are the devices'.
UPSTREAM = 700
CLASSES = 10
KIND = "image-classification"


def pretrained_digits(seed: int, layers: int, hidden: int) -> tuple[Loaded, stored.Rows, stored.Rows]:
    """A ViT that knows upright digits, under a new head; its rows; and the other digits, turned and inverted."""
    table = scanned().columns
    images, labels = torch.from_numpy(np.asarray(table["image"])), torch.from_numpy(np.asarray(table["label"]))
    order = torch.randperm(len(images), generator=generator(seed, "digits"))
    images, labels = images[order], labels[order]
    upstream = stored.Rows({"pixel_values": images[:UPSTREAM], "labels": labels[:UPSTREAM]}, KIND)
    turned = 1 - images[UPSTREAM:].transpose(-1, -2).contiguous()
    rest = stored.Rows({"pixel_values": turned, "labels": labels[UPSTREAM:]}, KIND)
    options = {"layers": layers, "hidden": hidden, "mlp": 2 * hidden}
    loaded = load("vit-nano", KIND, classes=CLASSES, options=options, seed=seed)
    path = kept_at("digits", seed, layers, hidden, code(__name__))
    if path.exists():
        loaded.model.load_state_dict(load_file(path))
    else:
        loaded.model.requires_grad_(True)
        steps = 25 * UPSTREAM // 64
        train_plainly(loaded.model, upstream, loaded.task, steps=steps, batch=64, lr=3e-3, seed=(seed, "upstream"))
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(loaded.model.state_dict(), beside)
        beside.replace(path)
    fresh = load("vit-nano", KIND, classes=CLASSES, options=options, seed=seed + 1000).model
    loaded.model.classifier = copy.deepcopy(fresh.classifier)
    loaded.model.eval().requires_grad_(False)
    return loaded, upstream, rest


def train_plainly(
    model: nn.Module, rows: Rows, task: Task, *, steps: int, batch: int, lr: float, seed: tuple[str | int, ...]
) -> None:
    """Training in one place, of all that requires a gradient, by AdamW."""
    seed_everything(*seed)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=lr)
    fit(model, rows.batches(batch, generator(*seed)), loss=task.loss, optimizer=optimizer, steps=steps)
