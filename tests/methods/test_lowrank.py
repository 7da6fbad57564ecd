"""Low-rank methods against dense matrices written out, in float64; what travels, and what may not."""

from dataclasses import replace

import pytest
import torch

from fedge.methods.customize.fedex_lora import FedExLoRA
from fedge.methods.customize.fedsa_lora import FedSALoRA
from fedge.methods.customize.ffa_lora import FFALoRA
from fedge.methods.customize.flexlora import FlexLoRA
from fedge.methods.customize.flora import FLoRA
from fedge.methods.customize.hetlora import HetLoRA
from fedge.methods.customize.lora import LoRA
from fedge.models.variant import duplicate
from fedge.testing.driver import drive
from tests.methods.conftest import logits, rows, three
from tests.methods.lowrank import PREFIX, SMALL, TARGETS, Double, apart, dense, go, mean_product, modules

RANKS = {"a": 6, "b": 3, "c": 2}


@pytest.fixture
def vit64(vit):
    return Double(duplicate(vit.model).double(), vit.task)


def of_ranks(method):
    return {device: replace(method, rank=rank) for device, rank in RANKS.items()}


def test_flora_adds_the_mean_of_products_to_every_base(vit64):
    method = FLoRA(**SMALL, rank=6)
    one, two = (go(method, vit64, n, of_ranks(method)) for n in (1, 2))
    finals = [one.final(), two.final()]
    devices = [dense(two.synced(device)) for device in "abc"]  # B is zero again, so the base is all there is
    for module in modules(vit64):
        base = vit64.model.get_submodule(module).weight
        first = base + 2.0 * mean_product(one.sent[0], module)
        assert apart(finals[0].get_submodule(module).weight - base, first - base) < 1e-12
        second = first + 2.0 * mean_product(two.sent[1], module)
        assert apart(finals[1].get_submodule(module).weight - base, second - base) < 1e-12
        assert all(apart(held[module] - base, second - base) < 1e-12 for held in devices)


def test_fedex_makes_the_mean_of_factors_the_mean_of_products(vit64):
    method = FedExLoRA(**SMALL, rank=3)
    before, driven = (go(method, vit64, rounds) for rounds in (1, 2))
    final, devices = driven.final(), [dense(driven.synced(device)) for device in "abc"]
    for module in modules(vit64):
        base = vit64.model.get_submodule(module).weight.detach()
        drifted = before.state["base"][f"{module}.weight"]
        exact = drifted + 2.0 * mean_product(driven.sent[-1], module, uniform=True)
        assert apart(final.get_submodule(module).weight - base, exact - base) < 1e-12
        assert all(apart(held[module] - base, exact - base) < 1e-12 for held in devices)
        factors_only = drifted + driven.state["factors"][f"{PREFIX}{module}.lora_B.weight"] @ (
            2.0 * driven.state["factors"][f"{PREFIX}{module}.lora_A.weight"]
        )
        assert apart(factors_only - base, exact - base) > 1e-3
        assert len(driven.state["log"]["2"][f"{PREFIX}{module}.lora_A.weight"]) == (3 - 1) * 3


def test_flexlora_gives_each_device_the_best_part_of_the_mean_of_products(vit64):
    method = FlexLoRA(**SMALL, rank=6)
    driven = go(method, vit64, 1, of_ranks(method))
    final, devices = driven.final(), {device: dense(driven.synced(device)) for device in RANKS}
    for module in modules(vit64):
        base = vit64.model.get_submodule(module).weight.detach()
        t = 2.0 * mean_product(driven.sent[0], module)
        assert apart(final.get_submodule(module).weight - base, t) < 1e-12
        spectrum = torch.linalg.svdvals(t)
        for device, rank in RANKS.items():
            held = devices[device][module] - base
            assert torch.linalg.matrix_rank(held, rtol=1e-9) <= rank
            assert float((held - t).norm()) == pytest.approx(float(spectrum[rank:].norm()), rel=1e-9, abs=1e-12)


def test_after_one_round_from_one_start_three_exact_methods_agree(vit64):
    numbers = {**SMALL, "rank": 3, "weighting": "uniform"}
    found = [
        go(method, vit64).final().state_dict()
        for method in (FLoRA(**numbers, redraw=False), FedExLoRA(**numbers), FlexLoRA(**numbers))
    ]
    base = vit64.model.state_dict()
    for module in modules(vit64):
        name = f"{module}.weight"
        assert apart(found[0][name] - base[name], found[1][name] - base[name]) < 1e-12
        assert apart(found[2][name] - base[name], found[1][name] - base[name]) < 1e-12


def test_full_ranks_in_float32_are_within_a_millionth(vit):
    flora, flex = FLoRA(**SMALL, rank=6), FlexLoRA(**SMALL, rank=6)
    for method, picks in ((flora, of_ranks(flora)), (flex, of_ranks(flex)), (FedExLoRA(**SMALL, rank=3), None)):
        driven = go(method, vit, 1, picks)
        final = driven.final()
        for module in modules(vit):
            base = vit.model.get_submodule(module).weight
            exact = base + 2.0 * mean_product(driven.sent[0], module, uniform=picks is None)
            assert apart(final.get_submodule(module).weight, exact) < 1e-6


def test_fedit_misses_the_covariance_of_the_factors(vit64):
    driven = go(LoRA(steps=2, batch=4, lr=1e-2, rank=3, alpha=6.0, targets=TARGETS), vit64)
    start = driven.server.method.init(driven.server)["weights"]
    total = sum(payloads[0].weight for payloads in driven.sent[0].values())
    for module in modules(vit64):
        names = [f"{PREFIX}{module}.lora_{x}.weight" for x in "AB"]
        held = [(p[0].weight / total, *(start[n] + p[0]["delta"][n] for n in names)) for p in driven.sent[0].values()]
        mean_a, mean_b = (driven.state["weights"][name] for name in names)
        missed = sum(p * b @ a for p, a, b in held) - mean_b @ mean_a
        covariance = sum(p * (b - mean_b) @ (a - mean_a) for p, a, b in held)
        assert apart(missed, covariance) < 1e-9
        assert float(missed.norm()) > 1e-6
        assert torch.linalg.matrix_rank(missed, rtol=1e-9) <= (3 - 1) * 3


def test_devices_that_agree_average_to_themselves(vit):
    # peft's own linear combination of adapters would give 2.9 times as much
    data = dict.fromkeys("abc", rows(vit, 4))
    numbers = {"steps": 3, "batch": 4, "rank": 2, "optimizer": "sgd", "lr": 0.3}
    for kind in (LoRA, FFALoRA, FedExLoRA, FlexLoRA, HetLoRA):
        together = logits(drive(kind(**numbers), vit.model, data, vit.task).final(), vit)
        alone = logits(drive(kind(**numbers), vit.model, {"a": data["a"]}, vit.task).final(), vit)
        assert torch.allclose(together, alone, atol=1e-5)
        assert not torch.allclose(alone, logits(vit.model, vit), atol=1e-2)


def test_the_truncated_residual_misses_what_its_spectrum_leaves_out(vit64):
    exact, low = FedExLoRA(**SMALL, rank=3), FedExLoRA(**SMALL, rank=3, residual_rank=2)
    whole, cut, same = (go(m, vit64) for m in (exact, low, replace(low, residual_rank=6)))
    for module in modules(vit64):
        base = vit64.model.get_submodule(module).weight
        residual, kept, all_kept = (d.state["base"][f"{module}.weight"] - base for d in (whole, cut, same))
        left_out = torch.linalg.svdvals(residual)[2:].norm()
        assert float((residual - kept).norm()) == pytest.approx(float(left_out), rel=1e-9)
        assert apart(all_kept, residual) < 1e-12


def test_ffa_s_a_never_changes_and_averaging_is_exact(vit64):
    method = FFALoRA(steps=2, batch=4, rank=3, alpha=6.0, targets=TARGETS)
    driven = go(method, vit64, 3)
    start = {n: t.clone() for n, t in driven.server.model().state_dict().items() if "lora_A" in n}
    adapter = method.adapter(driven.server, driven.state).state_dict()
    assert start
    assert all(torch.equal(adapter[name], a) for name, a in start.items())
    for device in "abc":
        held = driven.devices[device].model.state_dict()
        assert all(torch.equal(held[name], a) for name, a in start.items())
    assert not [n for sent in driven.sent for (p,) in sent.values() for n in p["delta"] if "lora_A" in n]
    before = go(method, vit64, 2).state["weights"]
    total, final = sum(p.weight for (p,) in driven.sent[2].values()), driven.final()
    for module in modules(vit64):
        a = start[f"{module}.lora_A.default.weight"]
        name = f"{PREFIX}{module}.lora_B.weight"
        products = sum(p.weight / total * (before[name] + p["delta"][name]) @ a for (p,) in driven.sent[2].values())
        base = vit64.model.get_submodule(module).weight
        assert apart(final.get_submodule(module).weight - base, 2.0 * products) < 1e-12


def test_ffa_sends_half_of_lora_where_modules_are_square(vit):
    square = {"steps": 1, "batch": 4, "rank": 4, "targets": ("q_proj", "v_proj")}
    sent = [go(m, vit).sent[0]["a"][0] for m in (FFALoRA(**square), LoRA(**square))]
    adapters = [sum(t.numel() for n, t in p["delta"].items() if "lora_" in n) for p in sent]
    assert 2 * adapters[0] == adapters[1] == 8 * 4 * (64 + 64)


def test_fedsa_s_b_and_head_never_leave(vit):
    method = FedSALoRA(steps=2, batch=4, rank=4, lr=1e-2)
    driven = go(method, vit, 3, absent={1: ["b"]})
    names = {n for sent in driven.sent for (p,) in sent.values() for tree in p.parts.values() for n in tree}
    assert names
    assert all(".lora_A." in name for name in names)
    assert set(driven.state["weights"]) == names
    own = {device: driven.devices[device].state["own"] for device in "abc"}
    for name in own["a"]:
        assert not torch.equal(own["a"][name], own["b"][name])
    held = {device: driven.synced(device) for device in "abc"}
    for device in "abc":
        state = held[device].state_dict()
        for name, tensor in driven.state["weights"].items():
            local = name.removeprefix(PREFIX).replace(".weight", ".default.weight")
            assert torch.equal(state[local], tensor)


def test_fedsa_s_devices_have_models_of_their_own(vit):
    method = FedSALoRA(steps=20, batch=9, rank=4, lr=1e-2)
    driven = go(method, vit, 2)
    for device, data in three(vit).items():
        driven.built[device].reset()
        personal = driven.personal(device).eval()
        assert type(personal) is type(vit.model)
        batch = next(data.chunks(9))
        with torch.no_grad():
            assert vit.task.loss(personal, batch) < vit.task.loss(driven.final().eval(), batch) / 2
    assert torch.allclose(logits(driven.final(), vit), logits(vit.model, vit), atol=1e-6)
