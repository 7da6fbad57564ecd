"""Taking up an adapter folder that fedge wrote: the base that it names, the adapter put on and merged."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from fedge.errors import MissingError
from fedge.models import lora, names
from fedge.models.load import HEAD_FILE, load
from fedge.models.pooled import PooledClassifier

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def load_adapted(folder: Path, task: str, classes: int | None) -> nn.Module:
    """The plain model, adapter merged, of a folder that ``models.save.save_adapter`` wrote.

    Raises MissingError when the folder or the base that it names is not there.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise MissingError(f"{folder} holds no adapter")
    config = json.loads((folder / CONFIG_FILE).read_text())
    named = config["base_model_name_or_path"]
    base = str(folder / named) if (folder / named).is_dir() else named
    model = load(base, task, classes=classes).model
    targets = sorted({name.rpartition(".")[2] for name in config["target_modules"]})
    model = lora.inject(model, rank=config["r"], alpha=config["lora_alpha"], targets=targets)
    inner = "encoder." if isinstance(model, PooledClassifier) else ""
    found = {}
    for name, tensor in load_file(folder / WEIGHTS_FILE).items():
        plain = name.removeprefix(_PREFIX)
        found[f"{_PREFIX}{inner}{plain}" if "lora_" in plain else plain] = tensor
    if (folder / HEAD_FILE).is_file():
        found.update(load_file(folder / HEAD_FILE))
    names.load(model, found)
    return lora.merge(model).requires_grad_(False).eval()
