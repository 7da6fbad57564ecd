"""Frozen weights that the server changes: every base has the same bits, whatever its device has missed."""

from dataclasses import replace

import pytest
import torch

from fedge.core.payload import Payload
from fedge.data.rows import Rows
from fedge.methods.customize.fedex_lora import FedExLoRA
from fedge.methods.customize.flexlora import FlexLoRA
from fedge.methods.customize.flora import FLoRA
from fedge.methods.customize.hetlora import HetLoRA
from fedge.methods.customize.lora import LoRA
from fedge.models.load import load
from fedge.testing.driver import drive
from tests.methods.conftest import logits, rows
from tests.methods.lowrank import PREFIX, SMALL, TARGETS, apart, factors, go, modules


def test_one_device_leaves_no_residual(vit):
    driven = drive(FedExLoRA(**SMALL, rank=2), vit.model, {"a": rows(vit, 5)}, vit.task, 2)
    assert driven.state["base"] == {}
    assert driven.state["version"] == 2
    plain = drive(
        LoRA(steps=2, batch=4, lr=1e-2, targets=TARGETS, rank=2, alpha=4.0), vit.model, {"a": rows(vit, 5)}, vit.task, 2
    )
    assert torch.allclose(logits(driven.final(), vit), logits(plain.final(), vit), atol=1e-5)


@pytest.mark.parametrize("method", [FLoRA(**SMALL, rank=2), FedExLoRA(**SMALL, rank=2)])
def test_bases_drift_bit_for_bit_alike_whatever_was_missed(method, vit):
    driven = go(method, vit, 4, absent={0: ["c"], 1: ["b", "c"], 2: ["b"]})
    for device in "abc":
        driven.synced(device)
        held = driven.devices[device].state["base"]
        assert held.keys() == driven.state["base"].keys()
        assert all(torch.equal(held[name], tensor) for name, tensor in driven.state["base"].items())


def test_a_device_further_than_the_server_knows_adds_nothing_twice(vit):
    method = FLoRA(**SMALL, rank=2)
    driven = go(method, vit, 2)
    driven.synced("a")  # has downloaded; its answer never came
    assert driven.devices["a"].state["version"] == 2 > driven.state["seen"]["a"]
    driven.synced("a")
    assert all(torch.equal(driven.devices["a"].state["base"][n], t) for n, t in driven.state["base"].items())


def test_what_is_missed_for_long_comes_as_whole_weights(vit):
    method = FLoRA(**SMALL, rank=8)
    driven = go(method, vit, 4, absent={1: ["c"], 2: ["c"]})
    sizes = [sum(down.values()) for down in driven.down]
    whole = sum(t.numel() for t in driven.state["base"].values())
    assert sum(t.numel() for tree in driven.state["log"].values() for t in tree.values()) <= whole
    assert driven.down[3]["c"] < 4 * whole * 1.1 + 8000
    assert sizes[1] < sizes[3]


def test_flora_s_traffic_is_the_stack_s(vit):
    method = FLoRA(**SMALL, rank=4)
    picks = {"a": method, "b": replace(method, rank=2), "c": replace(method, rank=2)}
    driven = go(method, vit, 2, picks)
    edges = sum(sum(vit.model.get_submodule(m).weight.shape) for m in modules(vit))
    head = 64 * 4 + 4
    for device, variant in picks.items():
        assert driven.sent[1][device][0].nbytes == 4 * (variant.rank * edges + head)
        down = Payload.from_bytes(driven.server.method.down(driven.server, driven.state, device).to_bytes())
        assert down.nbytes == 4 * ((4 + 2 + 2) * edges + head)


def test_flora_begins_each_round_anew(vit):
    for redraw in (True, False):
        driven = go(FLoRA(**SMALL | {"lr": 1e-7}, rank=2, redraw=redraw), vit, 2)
        name = f"{PREFIX}vit.layers.0.mlp.fc1.lora_A.weight"
        first, second = ([p["weights"][name] for (p,) in sent.values()] for sent in driven.sent)
        same = torch.allclose(first[0], first[1], atol=1e-5), torch.allclose(first[0], second[0], atol=1e-5)
        assert same == (not redraw, not redraw)


@pytest.mark.parametrize(
    "method", [FLoRA(**SMALL, rank=4), FedExLoRA(**SMALL, rank=4), HetLoRA(**SMALL, rank=4), FlexLoRA(**SMALL, rank=4)]
)
def test_a_device_that_was_away_ends_where_the_others_are(method, vit):
    variants = method.variants()
    same = {device: replace(variant, rank=4) for device, variant in zip("abc", variants[::2], strict=True)}
    driven = go(method, vit, 3, same, absent={1: ["b"], 2: ["a", "b"]})
    outputs = [logits(driven.synced(device), vit) for device in "abc"]
    assert all(torch.allclose(output, outputs[0], atol=1e-6) for output in outputs)
    if not isinstance(method, FlexLoRA):  # whose stage leaves more rank than its devices hold
        assert torch.allclose(outputs[0], logits(driven.final(), vit), atol=2e-5)


def test_a_transposed_layer_drifts_the_right_way():
    found = load("gpt-nano", "causal-lm", seed=3)
    ids = torch.randint(5, 200, (6, 12), generator=torch.Generator().manual_seed(1))
    data = {
        d: Rows({"input_ids": ids[at : at + 2], "labels": ids[at : at + 2].long()}, "causal-lm")
        for at, d in enumerate("abc")
    }
    method = FLoRA(steps=2, batch=2, rank=3, lr=1e-2)
    driven = drive(method, found.model, data, found.task, 1)
    name = "transformer.h.0.attn.c_attn"
    pairs = [factors(p, name) for (p,) in driven.sent[0].values()]
    expected = 2.0 * sum(b @ a for a, b in pairs) / 3
    base = found.model.get_submodule(name).weight
    assert base.shape == expected.T.shape != expected.shape
    assert apart(driven.final().get_submodule(name).weight - base, expected.T) < 1e-5
