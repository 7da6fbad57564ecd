"""Personalised methods: what stays on the device, and what is learnt together."""

import pytest
import torch

from fedge.methods.customize.ditto import Ditto
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.fedbabu import FedBABU
from fedge.methods.customize.fedper import FedPer, heads
from fedge.methods.customize.fedrep import FedRep
from fedge.models.names import tensors
from fedge.testing.driver import drive
from tests.methods.conftest import logits, three

SMALL = {"steps": 2, "batch": 4}


@pytest.mark.parametrize("method", [FedPer(**SMALL), FedRep(**SMALL, head_steps=3)], ids=["fedper", "fedrep"])
def test_heads_never_leave_and_differ(method, either):
    driven = drive(method, either.model, three(either), either.task, 2)
    own = heads(either.model)
    for sent in driven.sent:
        for payloads in sent.values():
            assert not [name for name in payloads[0]["delta"] if name.startswith(own)]
    models = {name: driven.personal(name) for name in driven.devices}
    said = {name: logits(model, either) for name, model in models.items()}
    assert not torch.allclose(said["a"], said["b"], atol=1e-4)
    final, base = tensors(driven.final()), tensors(either.model)
    for name, tensor in tensors(models["a"]).items():
        if name.startswith(own):
            assert torch.equal(final[name], base[name])
        else:
            assert torch.equal(tensor, final[name]), name


def test_fedrep_trains_the_head_first_and_then_the_body_under_it(vit):
    seen = []

    class Watched(FedRep):
        def train(self, dev, loss, start, rows=None, steps=None):
            before = {n: p.detach().clone() for n, p in dev.model.named_parameters()}
            super().train(dev, loss, start, rows, steps)
            moved = {n for n, p in dev.model.named_parameters() if not torch.equal(p, before[n])}
            seen.append((steps, {n.startswith("classifier.") for n in moved}))

    drive(Watched(**SMALL, head_steps=3), vit.model, {"a": three(vit)["a"]}, vit.task, 1)
    assert seen == [(3, {True}), (2, {False})]


def test_fedbabu_s_head_is_the_base_s_until_a_device_takes_its_own(either):
    method = FedBABU(**SMALL, tune=3)
    driven = drive(method, either.model, three(either), either.task, 2)
    own, base, final = heads(either.model), tensors(either.model), tensors(driven.final())
    for name, tensor in base.items():
        assert torch.equal(tensor, final[name]) == (name.startswith(own) or not tensor.is_floating_point()), name
    personal = tensors(driven.personal("a"))
    for name, tensor in personal.items():
        assert torch.equal(tensor, final[name]) != name.startswith(own), name


def test_ditto_learns_fedavg_bit_for_bit(vit):
    plain = drive(FedAvg(**SMALL), vit.model, three(vit), vit.task, 2)
    driven = drive(Ditto(**SMALL, own_steps=3), vit.model, three(vit), vit.task, 2)
    assert all(torch.equal(tensor, plain.state["weights"][n]) for n, tensor in driven.state["weights"].items())
    said = [logits(driven.personal(device), vit) for device in driven.devices]
    assert not torch.allclose(said[0], said[1], atol=1e-4)


def test_without_a_pull_ditto_s_own_model_is_trained_alone_and_with_a_strong_one_it_stays(vit):
    data = {"a": three(vit)["a"], "b": three(vit)["b"]}
    numbers = {**SMALL, "optimizer": "sgd", "lr": 0.05, "own_steps": 3}
    alone = drive(Ditto(**numbers, lam=0.0), vit.model, {"a": data["a"]}, vit.task, 2)
    among = drive(Ditto(**numbers, lam=0.0), vit.model, data, vit.task, 2)
    mine, theirs = (driven.devices["a"].state["own"] for driven in (alone, among))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)

    def away(lam):
        driven = drive(Ditto(**numbers, lam=lam), vit.model, data, vit.task, 1)
        base = tensors(vit.model)
        return sum(float((t - base[n]).norm()) for n, t in driven.devices["a"].state["own"].items())

    assert away(18.0) < away(0.0)
