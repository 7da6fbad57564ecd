"""Exits trained with their blocks: the losses against sums written out, and what single exits come to."""

from dataclasses import replace
from math import exp, log
from types import SimpleNamespace

import pytest
import torch

from fedge.methods.deploy.depthfl import DepthFL
from fedge.methods.deploy.joint import Joint
from fedge.methods.deploy.reefl import ReeFL
from fedge.methods.exits import Exits, ramp
from fedge.testing.driver import drive
from fedge.testing.tiny import tiny
from tests.methods.conftest import probe, three

SMALL = {"steps": 2, "batch": 4, "exits": (1, 2)}


@pytest.fixture
def three_exits(vit):
    draw = torch.Generator().manual_seed(1)
    logits = [torch.randn(5, 4, generator=draw, requires_grad=True) for _ in range(3)]
    batch = {"labels": torch.tensor([0, 1, 2, 3, 0])}
    return SimpleNamespace(task=vit.task, round=150), logits, batch


def crossed(logits, labels):
    return sum(-log(row.softmax(0)[label].item()) for row, label in zip(logits, labels, strict=True)) / len(labels)


def kl(teacher, student, temperature=1.0):
    p, q = (each.detach().div(temperature).softmax(-1) for each in (teacher, student))
    return sum((a * (a.log() - b.log())).sum().item() for a, b in zip(p, q, strict=True)) / len(p)


def test_joint_is_the_weighted_sum_and_the_last_exit_only_teaches(three_exits):
    dev, logits, batch = three_exits
    losses = [crossed(each, batch["labels"]) for each in logits]
    expected = sum(weight * loss for weight, loss in zip((1, 2, 3), losses, strict=True)) / 6
    taught = sum(kl(logits[2], each, 3.0) for each in logits[:2]) / 2
    found = Joint(exits=(1, 2, 3), distil=0.5).exits_loss(dev, logits, batch)
    assert found.item() == pytest.approx(expected + 0.5 * 9 * taught, rel=1e-5)
    plain = Joint(exits=(1, 2, 3), distil=0.0).exits_loss(dev, logits, batch)
    assert plain.item() == pytest.approx(expected, rel=1e-5)
    by = [torch.autograd.grad(each, logits[2], retain_graph=True)[0] for each in (found, plain)]
    assert torch.allclose(*by)


def test_depthfl_is_every_exit_teaching_every_other(three_exits):
    dev, logits, batch = three_exits
    losses = sum(crossed(each, batch["labels"]) for each in logits)
    taught = sum(kl(logits[j], logits[i]) for i in range(3) for j in range(3) if i != j)
    method = DepthFL(exits=(1, 2, 3))
    found = method.exits_loss(dev, logits, batch).item()
    assert found == pytest.approx(losses + exp(-5 * 0.25) / 2 * taught, rel=1e-5)
    assert [round(method.teaching(r), 4) for r in (0, 150, 300, 999)] == [0.0067, 0.2865, 1.0, 1.0]


@pytest.mark.parametrize("method", [Joint, DepthFL])
def test_one_exit_has_nobody_to_learn_from(method, three_exits):
    dev, logits, batch = three_exits
    found = method(exits=(1,)).exits_loss(dev, logits[:1], batch)
    assert torch.equal(found, dev.task.loss_of(logits[0], batch["labels"]))


def test_without_teaching_and_with_even_weights_depthfl_is_the_plain_sum(vit):
    """At round 0 of an endless ramp nothing is taught, so both train the same sum."""
    rows = three(vit)
    mine = drive(DepthFL(**SMALL, ramp=10**9, lr=1e-3), vit.model, rows, vit.task).final()
    theirs = drive(Exits(**SMALL, backbone=True, lr=1e-3), vit.model, rows, vit.task).final()
    for name, tensor in mine.state_dict().items():
        assert torch.allclose(tensor, theirs.state_dict()[name], atol=5e-3), name


@pytest.mark.parametrize("method", [Joint, DepthFL])
def test_a_shallow_device_trains_its_own_blocks_alone(method, vit):
    whole = method(**SMALL)
    picks = {"a": replace(whole, deepest=1), "b": replace(whole, deepest=2), "c": whole}
    driven = drive(whole, vit.model, three(vit), vit.task, variants=picks)
    sent = {device: set(driven.sent[0][device][0]["delta"]) for device in "abc"}
    blocks = {device: {name.split(".")[2] for name in names if ".layers." in name} for device, names in sent.items()}
    assert blocks == {"a": {"0"}, "b": {"0", "1"}, "c": {"0", "1", "2", "3"}}
    final = driven.final().eval()
    with torch.no_grad():
        logits = final(**probe(vit))
        predicted = whole.predict(final, probe(vit))
    expected = torch.stack(logits).mean(0) if method is DepthFL else logits[-1]
    assert torch.equal(predicted, expected)


def test_numbers_are_checked():
    for made in (
        lambda: Joint(distil=-1),
        lambda: Joint(temperature=0),
        lambda: DepthFL(ramp=0),
        lambda: ReeFL(memory=1),
    ):
        with pytest.raises(ValueError, match=r"at least 0|from 1"):
            made()


def test_reefl_learns_from_the_exit_that_does_best_on_the_average(three_exits):
    dev, logits, batch = three_exits
    losses = [crossed(each, batch["labels"]) for each in logits]
    best = losses.index(min(losses))
    method = ReeFL(exits=(1, 2, 3), ramp=300, memory=0.8)
    loss_of = method.loss_for(dev)
    first = loss_of(logits, batch)
    taught = sum(kl(logits[best], each) for each in logits)
    assert first.item() == pytest.approx(sum(losses) + ramp(150, 300) * taught, rel=1e-5)
    # the teacher learns from its labels alone
    (mine,) = torch.autograd.grad(first, logits[best], retain_graph=True)
    (plain,) = torch.autograd.grad(dev.task.loss_of(logits[best], batch["labels"]), logits[best], retain_graph=True)
    assert torch.allclose(mine, plain, atol=1e-6)
    # one worse batch does not dethrone it, since a fifth of the average is new
    worse = [each * (-1.0 if at == best else 1.0) for at, each in enumerate(logits)]
    now = [crossed(each, batch["labels"]) for each in worse]
    average = [0.8 * before + 0.2 * after for before, after in zip(losses, now, strict=True)]
    teacher = average.index(min(average))
    expected = sum(now) + ramp(150, 300) * sum(kl(worse[teacher], each) for each in worse)
    assert loss_of(worse, batch).item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(method.loss_for(dev)(logits[:1], batch), dev.task.loss_of(logits[0], batch["labels"]))


def test_what_is_not_labelled_teaches_nothing():
    found = tiny("causal")
    batch = {"labels": torch.tensor([[5, 6, 7, -100]])}
    draw = torch.Generator().manual_seed(2)
    logits = [torch.randn(1, 4, found.task.classes, generator=draw) for _ in range(2)]
    other = [each.clone() for each in logits]
    other[1][:, 2:] = 9.0  # predicts the label that does not count, and what comes after the text
    dev = SimpleNamespace(task=found.task, round=300)
    for method in (Joint(exits=(1, 2)), DepthFL(exits=(1, 2)), ReeFL(exits=(1, 2))):
        assert torch.allclose(method.loss_for(dev)(logits, batch), method.loss_for(dev)(other, batch)), method
