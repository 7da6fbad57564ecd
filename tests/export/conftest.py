"""Models with exits, real rows for them, and each exported once for the tests that only read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from fedge.data.encode import encode
from fedge.data.raw import Raw
from fedge.data.rows import Rows
from fedge.data.source import read
from fedge.export.exits import export_exits
from fedge.export.full import export_model
from fedge.export.job import Exported
from fedge.models.exits import MultiExit
from fedge.models.load import Loaded, load
from fedge.models.share import share

TOPICS = {
    "coffee": ["brew it slowly", "a dark roast with milk", "grind the beans just before", "no sugar for me, thanks"],
    "sailing": ["the wind has turned", "reef the main sail now", "anchor in the bay before dark falls", "port tack"],
}


class Case(NamedTuple):
    """A model, how it was loaded, its test rows, where it was exported, and as what."""

    model: nn.Module
    loaded: Loaded
    rows: Rows
    folder: Path
    everything: list[Exported]

    @property
    def exported(self) -> list[Exported]:
        """The targets of one graph that leaves at one place."""
        return [one for one in self.everything if one.target not in ("adaptive", "chain")]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def with_exits(loaded: Loaded, exits: tuple[int, ...]) -> MultiExit:
    torch.manual_seed(4)
    model = MultiExit(share(loaded.model), exits, loaded.task.classes).eval()
    # heads of some size, so that logits and labels differ from row to row
    draw = torch.Generator().manual_seed(5)
    for head in model.exits.values():
        of_its_own = (
            head.classifier if hasattr(head.classifier, "weight") else head.norm
        )  # a shared head is the model's
        of_its_own.weight.data.normal_(generator=draw)
    return model.requires_grad_(False)


def digits(loaded: Loaded) -> Rows:
    return encode(read("digits", folder=Path(), seed=0), None, loaded.task, 0, loaded.input_names).test


def texts(loaded: Loaded, folder: Path, length: int = 48) -> Rows:
    """Short texts on two topics, padded to ``length``; test rows only."""
    raw = topics(folder)
    return encode(raw, loaded.preprocessor, loaded.task, length, loaded.input_names).test


def topics(folder: Path) -> Raw:
    path = folder / "topics.csv"
    lines = [f'"{text}, {at}",{topic}' for at in range(12) for topic, own in TOPICS.items() for text in own]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return read("topics.csv", folder=folder, seed=0)


@pytest.fixture(scope="session")
def vit(tmp_path_factory) -> Case:
    loaded = load("vit-nano", "image-classification", classes=10, seed=1)
    folder = tmp_path_factory.mktemp("vit") / "export"
    model, rows = with_exits(loaded, (2, 4)), digits(loaded)
    about = {"run": "runs/digits", "methods": ["anytime"], "rounds": 3}
    return Case(model, loaded, rows, folder, export_exits(model, loaded, rows, folder, about=about))


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Case:
    loaded = load("bert-nano", "text-classification", labels=list(TOPICS), seed=1)
    folder = tmp_path_factory.mktemp("bert") / "export"
    model, rows = with_exits(loaded, (2,)), texts(loaded, folder.parent)
    about = {"name": "topics | two"}
    return Case(model, loaded, rows, folder, export_exits(model, loaded, rows, folder, labels=None, about=about))


@pytest.fixture(scope="session")
def gpt(tmp_path_factory) -> Case:
    loaded = load("gpt-nano", "causal-lm", seed=1)
    folder = tmp_path_factory.mktemp("gpt") / "export"
    rows = texts(loaded, folder.parent, 24)
    return Case(loaded.model, loaded, rows, folder, export_model(loaded.model, loaded, rows, folder, about={}))
