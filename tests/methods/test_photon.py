"""Photon's rounds: the outer optimizer against its other form, and the settings in which it is something simpler."""

import pytest
import torch

from fedge.core.server import ServerOptimizer
from fedge.errors import MethodError
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.train.diloco import DiLoCo
from fedge.methods.train.photon import Photon
from fedge.models.names import tensors, trainable
from fedge.models.variant import assemble
from fedge.testing.driver import drive
from fedge.testing.tiny import tiny

PLAIN = {"outer": "fedavg", "outer_lr": 1.0, "clip": 0.0, "beta2": 0.999}
FOUND = tiny("causal")


def three():
    return {name: FOUND.rows(n, name) for name, n in (("a", 5), ("b", 9), ("c", 2))}


def final(method, rounds, devices=None):
    return tensors(drive(method, FOUND.model, devices or three(), FOUND.task, rounds).final())


def test_nesterovs_form_and_fedmoms_give_one_sequence():
    lr, m = 0.7, 0.7
    changes = torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w, moments = {"w": torch.ones(5, dtype=torch.float64)}, {}
    mine = ServerOptimizer("nesterov", lr=lr, momentum=m)
    other = look = w["w"]  # FedMom (Huo et al. 2020): v' = w + lr Δ, w ← v' + m (v' − v), v₀ = w₀
    for change in changes:
        w, moments = mine.step(w, {"w": change}, moments)
        ahead = other + lr * change
        other, look = ahead + m * (ahead - look), ahead
        assert torch.allclose(w["w"], other, rtol=0, atol=1e-13)


def test_without_momentum_it_is_fedavg_bit_for_bit():
    ours = final(Photon(steps=2, batch=4, lr=1e-3, **PLAIN), 2)
    theirs = final(FedAvg(steps=2, batch=4, lr=1e-3), 2)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_one_local_step_of_sgd_is_one_step_on_all_rows():
    devices = {name: FOUND.rows(4, name) for name in "abc"}
    ours = final(Photon(steps=1, batch=4, lr=0.1, optimizer="sgd", **PLAIN), 3, devices)
    model = assemble(Photon(), FOUND.model, "test").model.train()
    batches = [next(rows.chunks(4)) for rows in devices.values()]
    for _ in range(3):
        loss = sum(FOUND.task.loss(model, batch) for batch in batches) / 3
        parameters = trainable(model)
        for parameter, slope in zip(
            parameters.values(), torch.autograd.grad(loss, list(parameters.values())), strict=True
        ):
            parameter.data.sub_(0.1 * slope)
    expected = tensors(model)
    assert all(torch.allclose(tensor, expected[name], atol=1e-6) for name, tensor in ours.items())


def test_with_its_state_kept_one_device_trains_as_if_uninterrupted():
    method = DiLoCo(steps=3, batch=4, warmup=4, horizon=9, **PLAIN)
    rows = {"a": FOUND.rows(4, "a")}
    driven = drive(method, FOUND.model, rows, FOUND.task, 3)
    model = assemble(method, FOUND.model, "test").model.train()
    optimizer = torch.optim.AdamW(trainable(model).values(), weight_decay=0.0)
    batch = next(rows["a"].chunks(4))
    for step in range(9):
        optimizer.zero_grad()
        FOUND.task.loss(model, batch).backward()
        optimizer.param_groups[0]["lr"] = method.rate(step)
        optimizer.step()
    with torch.no_grad():
        ours, theirs, begun = (m.eval()(**FOUND.probe).logits for m in (driven.final(), model, FOUND.model))
    assert (ours - theirs).norm() < 0.01 * (theirs - begun).norm()
    anew = drive(Photon(steps=3, batch=4, warmup=4, horizon=9, **PLAIN), FOUND.model, rows, FOUND.task, 3)
    with torch.no_grad():
        assert (anew.final().eval()(**FOUND.probe).logits - theirs).norm() > 0.05 * (theirs - begun).norm()


def test_the_rate_goes_on_over_the_rounds():
    method = Photon(lr=1.0, warmup=4, horizon=10)
    assert [method.rate(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert method.rate(4) == 1.0
    assert method.rate(7) == pytest.approx(0.55)
    assert method.rate(10) == method.rate(99) == pytest.approx(0.1)
    assert Photon(lr=1.0).rate(10_000) == 1.0


def test_a_stages_own_server_optimizer_is_refused():
    with pytest.raises(MethodError, match="server optimizer of its own"):
        drive(Photon(steps=1, batch=4), FOUND.model, three(), FOUND.task, optimizer=ServerOptimizer("fedadam", lr=0.01))
