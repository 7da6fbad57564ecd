"""Tiny models and rows that the tests of the methods share. The bases are never written: each test is held to that."""

from __future__ import annotations

from hashlib import sha256

import pytest
import torch
from torch import nn

from fedge.core.rng import generator
from fedge.data.rows import Rows
from fedge.methods.combine.fedbuff import FedBuff
from fedge.methods.combine.mixed import Mixed
from fedge.methods.combine.stages import Stages
from fedge.methods.customize.bitfit import BitFit
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.fedex_lora import FedExLoRA
from fedge.methods.customize.fedmd import FedMD
from fedge.methods.customize.fedsa_lora import FedSALoRA
from fedge.methods.customize.ffa_lora import FFALoRA
from fedge.methods.customize.flexlora import FlexLoRA
from fedge.methods.customize.flora import FLoRA
from fedge.methods.customize.head import Head
from fedge.methods.customize.hetlora import HetLoRA
from fedge.methods.customize.lora import LoRA
from fedge.methods.customize.replication_padding import ReplicationPadding
from fedge.methods.deploy.anytime import Anytime
from fedge.methods.deploy.depthfl import DepthFL
from fedge.methods.deploy.joint import Joint
from fedge.methods.train.split import Split
from fedge.models.load import Loaded, load
from fedge.testing.kit import PROPERTIES

CLASSES = 4
LENGTH = 12
#: For a method around another that `privacy` makes: it has no row in the catalogue, hence no card to complete.
WITHOUT_KEYS = [name for name in PROPERTIES if name != "card"]
_LOADED: dict[str, Loaded] = {}


def loaded(name: str) -> Loaded:
    if name not in _LOADED:
        task = "image-classification" if name == "vit-nano" else "text-classification"
        _LOADED[name] = load(name, task, classes=CLASSES, seed=3)
    return _LOADED[name]


def checksum(model: nn.Module) -> str:
    digest = sha256()
    for tensor in (*model.parameters(), *model.buffers()):
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(autouse=True)
def nobody_writes_the_bases():
    torch.set_num_threads(1)
    before = {name: checksum(loaded(name).model) for name in ("vit-nano", "bert-nano")}
    yield
    assert {name: checksum(found.model) for name, found in _LOADED.items()} == before
    assert not any(p.requires_grad for found in _LOADED.values() for p in found.model.parameters())


@pytest.fixture
def vit() -> Loaded:
    return loaded("vit-nano")


@pytest.fixture
def bert() -> Loaded:
    return loaded("bert-nano")


@pytest.fixture(params=["vit-nano", "bert-nano"])
def either(request) -> Loaded:
    return loaded(request.param)


def rows(found: Loaded, n: int, name: str = "rows") -> Rows:
    """Rows of random content for a model, text rows of different lengths."""
    made = generator(name, n)
    labels = torch.randint(CLASSES, (n,), generator=made)
    if found.task.kind == "image-classification":
        return Rows({"pixel_values": torch.rand(n, 1, 8, 8, generator=made), "labels": labels}, found.task.kind)
    ids = torch.randint(5, 200, (n, LENGTH), generator=made, dtype=torch.int32)
    lengths = torch.randint(4, LENGTH + 1, (n, 1), generator=made)
    mask = (torch.arange(LENGTH) < lengths).byte()
    return Rows({"input_ids": ids * mask, "attention_mask": mask, "labels": labels}, found.task.kind)


def three(found: Loaded) -> dict[str, Rows]:
    """Three devices with different numbers of rows."""
    return {"a": rows(found, 5, "a"), "b": rows(found, 9, "b"), "c": rows(found, 2, "c")}


def probe(found: Loaded) -> dict[str, torch.Tensor]:
    """Inputs on which models are compared."""
    return found.task.inputs(next(rows(found, 6, "probe").chunks(6)))


@torch.no_grad()
def logits(model: nn.Module, found: Loaded) -> torch.Tensor:
    output = model.eval()(**probe(found))
    return output[-1] if isinstance(output, list) else output.logits


SMALL = {"steps": 2, "batch": 4}
#: Every built method at a size for tests.
METHODS = {
    "fedavg": FedAvg(**SMALL),
    "head": Head(**SMALL),
    "bitfit": BitFit(**SMALL),
    "lora": LoRA(**SMALL, rank=4, lr=1e-2),
    "ffa_lora": FFALoRA(**SMALL, rank=4),
    "fedex_lora": FedExLoRA(**SMALL, rank=4, lr=1e-2),
    "fedsa_lora": FedSALoRA(**SMALL, rank=4, lr=1e-2),
    "flora": FLoRA(**SMALL, rank=4, lr=1e-2),
    "flexlora": FlexLoRA(**SMALL, rank=4, lr=1e-2),
    "hetlora": HetLoRA(**SMALL, rank=4, lr=1e-2),
    "replication_padding": ReplicationPadding(**SMALL, rank=4, low=2, lr=1e-2),
    "stages": Stages(of=(Head(**SMALL), LoRA(**SMALL, rank=4)), switch=(1,)),
    "fedbuff": FedBuff(inner=BitFit(**SMALL), buffer=3),
    "mixed": Mixed(members=(LoRA(**SMALL, rank=4, lr=1e-2), BitFit(**SMALL), Head(**SMALL))),
    "split": Split(**SMALL),
    "fedmd": FedMD(**SMALL, digest=2),
    "anytime": Anytime(**SMALL, exits=(1, 2)),
    "joint": Joint(**SMALL, exits=(1, 2)),
    "depthfl": DepthFL(**SMALL, exits=(1, 2)),
}
