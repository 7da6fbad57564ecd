"""Two-way distillation: only logits travel, and the consensus is their mean by rows."""

import pytest
import torch

from fedge.errors import MethodError
from fedge.methods.customize.fedmd import FedMD
from fedge.methods.distil import logits_on
from fedge.models.load import load
from fedge.testing.driver import drive
from tests.methods.conftest import rows, three

METHOD = FedMD(steps=2, digest=2, batch=4)


def test_traffic_does_not_depend_on_the_model(vit):
    other = load("vit-nano", "image-classification", classes=4, options={"hidden": 32, "layers": 2}, seed=1)
    sizes = []
    for found in (vit, other):
        driven = drive(METHOD, found.model, three(found), found.task, 2, public=rows(found, 10, "public"))
        sizes.append((driven.up, driven.down))
        assert all(
            list(payload.parts) == ["logits"] for sent in driven.sent for one in sent.values() for payload in one
        )
    assert sizes[0] == sizes[1]
    assert driven.sent[0]["a"][0].nbytes == 10 * 4 * 4


def test_the_consensus_is_the_mean_by_rows(vit):
    driven = drive(METHOD, vit.model, three(vit), vit.task, public=rows(vit, 10, "public"))
    sent = [payloads[0] for payloads in driven.sent[0].values()]
    mean = sum(p.weight * p["logits"]["public"].double() for p in sent) / sum(p.weight for p in sent)
    assert torch.allclose(driven.state["consensus"]["public"].double(), mean, atol=1e-6)
    assert [p.weight for p in sent] == [5, 9, 2]


def test_one_device_agrees_with_itself(vit):
    public = rows(vit, 10, "public")
    driven = drive(METHOD, vit.model, {"a": rows(vit, 9)}, vit.task, public=public)
    device = driven.devices["a"]
    own = logits_on(driven.personal(device.name), vit.task, public)
    assert torch.allclose(driven.state["consensus"]["public"], own, atol=1e-5)


def test_devices_keep_their_own_models_and_the_student_nears_the_consensus(vit):
    public = rows(vit, 10, "public")
    method = FedMD(steps=2, digest=30, batch=5)
    driven = drive(method, vit.model, three(vit), vit.task, 3, public=public)
    models = [driven.devices[device].state["weights"]["classifier.weight"] for device in "ab"]
    assert not torch.equal(*models)
    consensus = driven.state["consensus"]["public"]
    before = (logits_on(driven.server.model(), vit.task, public) - consensus).abs().mean()
    after = (logits_on(driven.final(), vit.task, public) - consensus).abs().mean()
    assert after < before / 2


def test_public_rows_are_needed(vit):
    with pytest.raises(MethodError, match="rows that all share"):
        drive(METHOD, vit.model, three(vit), vit.task)
