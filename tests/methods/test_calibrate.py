"""Calibrated logits: a device's own shares of the classes, taken out of its loss."""

import pytest
import torch
from torch import nn

from fedge.core.task import Calibrated, Task, calibrated
from fedge.errors import ConfigError
from fedge.methods.combine.mixed import Mixed
from fedge.methods.customize.ditto import Ditto
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.fedper import FedPer
from fedge.methods.customize.head import Head
from fedge.methods.customize.local import Local
from fedge.methods.deploy.joint import Joint
from fedge.methods.train.fedpcl import FedPCL
from fedge.methods.train.zoopfl import ZooPFL
from fedge.plan.menu import method_of
from fedge.plan.trace import Setting, trace
from fedge.spec import load_federation
from fedge.testing.driver import drive
from fedge.testing.tiny import tiny

CLASSES = Task("image-classification", 4)


def test_with_equal_shares_it_is_cross_entropy():
    logits, labels = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 4
    ours = calibrated(CLASSES, [labels[:5], labels[5:]], 1.0)
    assert ours.loss_of(logits, labels) == pytest.approx(float(CLASSES.loss_of(logits, labels)), rel=1e-6)


def test_the_loss_is_that_of_the_formula():
    logits, labels = torch.randn(3, 4), torch.tensor([0, 0, 1])
    share = torch.tensor([2.01, 1.01, 0.01, 0.01]) / 3.04
    for tau in (0.5, 1.0):
        weighed = share**tau * logits.exp()
        oracle = -(weighed[range(3), labels] / weighed.sum(1)).log().mean()
        assert float(calibrated(CLASSES, [labels], tau).loss_of(logits, labels)) == pytest.approx(float(oracle))


def test_without_knowledge_of_the_rows_the_best_logits_are_equal_and_not_the_shares():
    # one bias alone is trained: cross-entropy drives it to the log of the shares, calibrated logits leave it level
    labels = torch.tensor([0] * 60 + [1] * 25 + [2] * 10 + [3] * 5)
    for task, level in ((CLASSES, False), (calibrated(CLASSES, [labels], 1.0), True)):
        bias = nn.Parameter(torch.zeros(4))
        optimizer = torch.optim.LBFGS([bias], max_iter=200)

        def loss(task=task, bias=bias, optimizer=optimizer):
            optimizer.zero_grad()
            found = task.loss_of(bias.expand(100, 4), labels)
            found.backward()
            return found

        optimizer.step(loss)
        spread = float((bias.max() - bias.min()).detach())
        assert (spread < 0.15) if level else (spread > 2)


def test_every_loss_of_the_family_goes_by_it_and_tests_do_not():
    rows = tiny("image").rows(8, "r")
    labels = next(rows.chunks(8))["labels"]
    for method in (FedAvg(calibrate=1.0), Head(calibrate=1.0), Joint(calibrate=1.0)):
        task = method.learns(tiny("image").task, rows)
        assert isinstance(task, Calibrated)
        assert torch.equal(task.lean, calibrated(tiny("image").task, [labels], 1.0).lean)
    wrapped = Mixed(members=(FedAvg(calibrate=1.0),)).variants()[0]
    assert isinstance(wrapped.learns(tiny("image").task, rows), Calibrated)
    assert type(FedAvg().learns(tiny("image").task, rows)) is Task


def test_a_round_with_it_ends_elsewhere_and_costs_next_to_nothing():
    found = tiny("image")
    rows = {"a": found.rows(8, "a"), "b": found.rows(8, "b")}
    plain, ours = (drive(FedAvg(calibrate=tau, steps=2), found.model, rows, found.task, 1) for tau in (0.0, 1.0))
    weights = [done.final().state_dict() for done in (plain, ours)]
    assert any(not torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))
    setting = Setting(found.model, found.task, found.rows(8, "a"))
    costs = [trace(FedAvg(calibrate=tau), FedAvg(calibrate=tau), setting) for tau in (0.0, 1.0)]
    assert not costs[1].measured, "shares are counted on tensors without data too"
    assert costs[1].flops == costs[0].flops
    assert costs[1].peak_memory == pytest.approx(costs[0].peak_memory, rel=0.02)


def test_what_can_not_honour_it_refuses_it():
    for kind in (FedPCL, ZooPFL, FedPer, Ditto):
        with pytest.raises(ValueError, match="calibrate"):
            kind(calibrate=1.0)
    with pytest.raises(ValueError, match="each device has its own"):
        Local(inner=FedAvg(calibrate=1.0))
    with pytest.raises(ValueError, match="0 or above"):
        FedAvg(calibrate=-1)


def test_where_labels_are_tokens_it_is_refused_at_its_key(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text(
        "model: gpt2-nano\ndata: {dataset: digits}\ndevices: {pi: {profile: pi-4b-4g}}\n"
        "stages:\n  - customize: {method: lora, calibrate: 1}\n"
    )
    spec = load_federation(path)
    with pytest.raises(ConfigError) as caught:
        method_of(spec, spec.stages[0], "causal-lm")
    assert "f.yaml:5:" in str(caught.value)
    assert "stages.0.customize.calibrate" in str(caught.value) or "stages.0.calibrate" in str(caught.value)
