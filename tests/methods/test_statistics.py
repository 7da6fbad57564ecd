"""Heads in closed form and models in coordinates, against all rows in one place."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from fedge.errors import MissingError
from fedge.methods.customize.fed3r import Fed3R
from fedge.methods.customize.fedkseed import FedKSeed, rebuild, walk
from fedge.methods.customize.fedncm import FedNCM
from fedge.models.features import classifier, features
from fedge.models.names import tensors
from fedge.models.share import own, share
from fedge.testing.driver import drive
from tests.methods.conftest import logits, rows, three


def parts_of(found, sizes):
    """The same rows on as many devices as ``sizes`` names."""
    whole = rows(found, sum(sizes), "pooled")
    at = [sum(sizes[:n]) for n in range(len(sizes))]
    names = [f"d{n}" for n in range(len(sizes))]
    return {n: whole.take(torch.arange(a, a + s)) for n, a, s in zip(names, at, sizes, strict=True)}, whole


def pooled(found, whole):
    """Features and labels of all rows."""
    model = share(found.model)
    phi = torch.cat([features(model, found.task.inputs(row)) for row in whole.chunks(1)])
    return phi.double(), whole.labels


# -- Fed3R -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [True, False])
def test_the_closed_form_is_that_of_all_rows_for_any_partition(normalise, either):
    # a row at a time: a row's features in float32 depend on how many are computed at once, by rounding
    method, found = Fed3R(normalise=normalise, ridge=0.3, batch=1), []
    for sizes in ([24], [3, 20, 1], [2] * 12):
        devices, whole = parts_of(either, sizes)
        driven = drive(method, either.model, devices, either.task, 2)
        found.append(method.solve(driven.state["gram"], driven.state["moments"]))
    assert all((one - found[0]).abs().max() <= 1e-10 for one in found)
    phi, labels = pooled(either, whole)
    phi = functional.pad(phi, (0, 1), value=1.0)
    # ridge regression as least squares with rows sqrt(λ) I appended
    below = torch.eye(phi.shape[1], dtype=torch.float64) * 0.3**0.5
    targets = torch.cat([functional.one_hot(labels, 4).double(), torch.zeros(len(below), 4, dtype=torch.float64)])
    oracle = torch.linalg.lstsq(torch.cat([phi, below]), targets).solution
    oracle = oracle / oracle.norm(dim=0) if normalise else oracle
    assert (found[0] - oracle).abs().max() <= 1e-8


def test_a_device_is_counted_once_and_a_late_one_joins(vit):
    method = Fed3R()
    driven = drive(method, vit.model, three(vit), vit.task, 3, absent={0: ["b"]}, lost={(0, 0): ["c"]})
    assert [sorted(sent) for sent in driven.sent] == [["a"], ["b", "c"], []]
    plain = drive(method, vit.model, three(vit), vit.task, 1)
    assert torch.allclose(driven.state["gram"], plain.state["gram"], atol=1e-12)
    assert logits(driven.final(), vit).shape == (6, 4)
    width = vit.model.config.hidden_size + 1
    assert driven.sent[0]["a"][0].nbytes == 8 * (width * (width + 1) // 2 + width * 4)


def test_a_head_that_is_no_linear_layer_is_refused(vit):
    with pytest.raises(MissingError, match="does not end in a linear layer"):
        classifier(vit.model.vit)


# -- FedNCM ------------------------------------------------------------------------------------------------------------


def test_class_means_are_those_of_all_rows_for_any_partition(either):
    method, heads = FedNCM(steps=2, batch=4), []
    for sizes in ([24], [3, 20, 1], [2] * 12):
        devices, whole = parts_of(either, sizes)
        driven = drive(method, either.model, devices, either.task, 1)
        heads.append(driven.state["weights"]["classifier.weight"])
    assert all(torch.allclose(head, heads[0], atol=1e-6) for head in heads)
    phi, labels = pooled(either, whole)
    means = torch.stack([phi[labels == c].mean(0) for c in range(4)])
    assert torch.allclose(heads[0].double(), means / means.norm(dim=1, keepdim=True), atol=1e-6)
    assert driven.state["weights"]["classifier.bias"].abs().max() == 0


def test_a_class_that_nobody_holds_keeps_its_row(vit):
    whole = rows(vit, 30, "some")
    some = whole.take((whole.labels != 2).nonzero().flatten())
    driven = drive(FedNCM(steps=1, batch=4), vit.model, {"a": some}, vit.task, 1)
    now, before = driven.state["weights"]["classifier.weight"], vit.model.classifier.weight
    assert torch.equal(now[2], before[2])
    assert not torch.equal(now[1], before[1])


@pytest.mark.parametrize("first", ["ncm", "lp"])
def test_after_the_head_every_weight_is_trained(first, vit):
    driven = drive(FedNCM(steps=2, batch=4, first=first), vit.model, three(vit), vit.task, 2)
    head = {"classifier.weight", "classifier.bias"}
    assert set(driven.sent[0]["a"][0]["delta"]) == (head if first == "lp" else set())
    assert set(driven.sent[1]["a"][0]["delta"]) == set(driven.state["weights"]) > head


# -- FedKSeed ----------------------------------------------------------------------------------------------------------

KSEED = FedKSeed(seeds=32, steps=6, batch=4, lr=1e-2, eps=1e-2)


def test_scalars_rebuild_the_average_of_models(vit):
    driven = drive(KSEED, vit.model, three(vit), vit.task, 1)
    total = sum(len(device.data) for device in driven.devices.values())
    ended = {name: tensors(device.model) for name, device in driven.devices.items()}
    final = tensors(driven.final())
    for name, tensor in final.items():
        mean = sum(len(driven.devices[d].data) / total * ended[d][name].double() for d in ended)
        assert (tensor.double() - mean).abs().max() <= 2e-5, name


def test_a_step_is_the_slope_along_a_direction(vit):
    method = replace(KSEED, steps=1, eps=1e-3)
    driven = drive(method, vit.model, {"a": rows(vit, 4)}, vit.task, 1)
    (seed,) = driven.state["at"].nonzero().flatten().tolist()
    model = own(share(vit.model).requires_grad_(True)).eval()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    loss = vit.task.loss(model, next(rows(vit, 4).chunks(4)))
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    walk(model, seed, 1.0)
    z = [parameter.detach() - at for parameter, at in zip(model.parameters(), start, strict=True)]
    slope = sum((g * d).sum() for g, d in zip(slopes, z, strict=True))
    assert driven.state["at"][seed] == pytest.approx(-method.lr * slope.item(), rel=0.05, abs=1e-5)


def test_traffic_is_four_bytes_a_seed_each_way_whatever_the_model(either):
    driven = drive(FedKSeed(steps=1, batch=2), either.model, {"a": rows(either, 3)}, either.task, 1)
    assert driven.sent[0]["a"][0].nbytes == 4 * 4096
    assert driven.up[0]["a"] <= 18_000
    assert driven.down[0]["a"] <= 18_000


def test_the_whole_change_lies_along_the_seeds(vit):
    driven = drive(KSEED, vit.model, three(vit), vit.task, 3)
    model = own(share(vit.model).requires_grad_(True))
    rebuild(model, driven.state["at"])
    assert all(torch.equal(t, tensors(model)[n]) for n, t in tensors(driven.final()).items())
    assert driven.state["at"].count_nonzero() > 0
