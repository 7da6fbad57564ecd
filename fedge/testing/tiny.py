"""Tiny federations on which methods are tried: bundled architectures at toy sizes, rows of random content."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256

import torch
from torch import Tensor, nn

from fedge.core.rng import generator
from fedge.core.task import Task
from fedge.data.rows import Masking, Rows
from fedge.models.load import Loaded, load

CLASSES = 4
#: Tokens in a row of text.
LENGTH = 12
#: Name of a setting -> bundled model and task.
SETTINGS = {
    "image": ("vit-nano", "image-classification"),
    "text": ("bert-nano", "text-classification"),
    "causal": ("gpt-nano", "causal-lm"),
    "masked": ("bert-nano", "masked-lm"),
}
#: Six blocks, so that methods which name blocks (exits after 2, 4 and 6) run with their defaults.
_SIZES = {"layers": 6, "hidden": 16, "mlp": 32}


@dataclass(frozen=True)
class Tiny:
    """A base model with its task, and as many random rows as one asks for."""

    name: str
    loaded: Loaded

    @property
    def model(self) -> nn.Module:
        return self.loaded.model

    @property
    def task(self) -> Task:
        return self.loaded.task

    def rows(self, n: int, name: str = "rows") -> Rows:
        """``n`` rows, the same for the same name; text rows of different lengths."""
        return rows_for(self.loaded, n, name)

    @cached_property
    def probe(self) -> dict[str, Tensor]:
        """Inputs on which models are compared."""
        return self.task.inputs(next(self.rows(6, "probe").chunks(6)))


@cache
def tiny(name: str) -> Tiny:
    """One of ``SETTINGS``, loaded once in a process."""
    model, task = SETTINGS[name]
    classes = CLASSES if task.endswith("classification") else None
    return Tiny(name, load(model, task, classes=classes, options=_SIZES, seed=3))


def rows_for(loaded: Loaded, n: int, name: str = "rows") -> Rows:
    """Rows of random content for a bundled model (``vit-nano``'s images, or tokens), the same for the same name."""
    made = generator(name, n)
    kind = loaded.task.kind
    labels = torch.randint(CLASSES, (n,), generator=made)
    if kind == "image-classification":
        return Rows({"pixel_values": torch.rand(n, 1, 8, 8, generator=made), "labels": labels}, kind)
    ids = torch.randint(5, 200, (n, LENGTH), generator=made, dtype=torch.int32)
    lengths = torch.randint(4, LENGTH + 1, (n, 1), generator=made)
    mask = (torch.arange(LENGTH) < lengths).byte()
    columns = {"input_ids": ids * mask, "attention_mask": mask}
    if kind == "text-classification":
        return Rows({**columns, "labels": labels}, kind)
    if kind == "causal-lm":
        return Rows({"input_ids": ids}, kind)
    words = loaded.preprocessor
    masking = Masking(int(words.mask_token_id), len(words), tuple(words.all_special_ids))
    return Rows(columns, kind, masking=masking)


def checksum(model: nn.Module) -> str:
    """A hash over the bytes of all parameters and buffers."""
    digest = sha256()
    for tensor in (*model.parameters(), *model.buffers()):
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
