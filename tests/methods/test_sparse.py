"""FLASC and ComPEFT: what travels is what is said, to the byte, and nothing else changes."""

import math
from dataclasses import replace

import pytest
import torch

from fedge.codecs import bits
from fedge.codecs.largest import how_many
from fedge.core.payload import Payload
from fedge.core.server import ServerOptimizer
from fedge.errors import ProtocolError
from fedge.methods.customize.compeft import ComPEFT, unpacked
from fedge.methods.customize.flasc import FLASC
from fedge.methods.customize.lora import LoRA
from fedge.methods.flat import dense, flat, shapes, sparse, unflat
from fedge.models.names import tensors
from fedge.testing.driver import drive, start
from tests.methods.conftest import logits, three

SMALL = {"steps": 2, "batch": 4, "rank": 4, "lr": 1e-2}
BOTH = {"down_density": 0.25, "up_density": 0.125}


def test_what_lies_flat_stands_up_again():
    tree = {"a": torch.randn(2, 3), "b": torch.randn(4)}
    of = shapes(tree)
    back = unflat(flat(tree, of), of)
    assert all(torch.equal(back[name], tree[name]) for name in tree)
    part = flat({"a": tree["a"][:1]}, of)
    assert torch.equal(part, torch.cat([tree["a"][0], torch.zeros(7)]))
    vector, places = torch.randn(1000), torch.tensor([3, 17, 999])
    read, where = dense(sparse(vector, places), 1000)
    assert torch.equal(where, places)
    assert torch.equal(read, torch.zeros(1000).index_copy(0, places, vector[places]))
    for bad in ({}, {**sparse(vector, places), "values": torch.zeros(4)}, {"values": torch.zeros(2000)}):
        with pytest.raises(ProtocolError):
            dense(bad, 1000)


@pytest.mark.parametrize("masked", ["change", "weights"])
@pytest.mark.parametrize("optimizer", [ServerOptimizer(), ServerOptimizer("fedadam", lr=0.01)])
def test_with_everything_sent_it_is_lora(optimizer, masked, vit):
    method = FLASC(**SMALL, down_density=1, up_density=1, masked=masked)
    ours = drive(method, vit.model, three(vit), vit.task, 2, optimizer=optimizer)
    plain = drive(LoRA(**SMALL), vit.model, three(vit), vit.task, 2, optimizer=optimizer)
    for name, tensor in plain.state["weights"].items():
        assert torch.allclose(ours.state["weights"][name], tensor, atol=1e-6), name


def test_both_ways_cost_what_the_formula_says(either):
    method = FLASC(**SMALL, **BOTH)
    driven = drive(method, either.model, three(either), either.task)
    size = sum(tensor.numel() for tensor in driven.state["weights"].values())
    up, down = (how_many(density, size) for density in (0.125, 0.25))
    sent = driven.sent[0]["a"][0]
    assert sent.nbytes == 4 * up + bits.places_nbytes(up, size)
    begun = start(method, either.model, three(either), either.task)
    assert method.down(begun.server, begun.state, "a").nbytes == 4 * down + bits.places_nbytes(down, size)


def test_the_mean_counts_what_was_left_out_as_no_change(vit):
    method = FLASC(**SMALL, **BOTH)
    driven = drive(method, vit.model, three(vit), vit.task)
    before = start(method, vit.model, three(vit), vit.task).state["weights"]
    of, size = shapes(before), sum(tensor.numel() for tensor in before.values())
    total = torch.zeros(size, dtype=torch.float64)
    for payloads in driven.sent[0].values():
        total += payloads[0].weight * dense(payloads[0]["delta"], size)[0].double()
    expected = unflat(flat(before, of).double() + total / 16, of)
    assert all(torch.allclose(t.double(), expected[n], atol=1e-6) for n, t in driven.state["weights"].items())


@pytest.mark.parametrize("masked", ["change", "weights"])
def test_devices_and_the_final_model_are_the_masked_one(masked, vit):
    method = FLASC(**SMALL, **BOTH, masked=masked)
    driven = drive(method, vit.model, three(vit), vit.task, 2)
    shown, begun = tensors(method.adapter(driven.server, driven.state)), driven.state["from"]
    moved = {n: shown[n] - begun[n] if n in begun else shown[n] for n in driven.state["weights"]}
    size = sum(tensor.numel() for tensor in moved.values())
    assert 0 < sum(int((tensor != 0).sum()) for tensor in moved.values()) <= how_many(0.25, size)
    seen = {}
    driven.devices["b"].model.register_forward_pre_hook(
        lambda module, given: seen.update({n: t.clone() for n, t in tensors(module).items()} if not seen else {})
    )
    driven.go(1)
    assert all(torch.allclose(seen[name], shown[name], atol=1e-7) for name in moved)
    assert masked == "weights" or not torch.equal(logits(driven.final(), vit), logits(vit.model, vit))


def test_in_the_surveys_reading_only_what_was_sent_moves(vit):
    method = FLASC(**SMALL, down_density=0.1, up_density=1, reading="survey")
    driven = drive(method, vit.model, three(vit), vit.task)
    size = len(method.vector(driven.state))
    _, sent = dense(method.down(driven.server, driven.state, "a")["weights"], size)
    for reading, only in (("survey", True), ("paper", False)):
        driven = drive(replace(method, reading=reading), vit.model, three(vit), vit.task, 2)
        moved = set(dense(driven.sent[1]["a"][0]["delta"], size)[0].nonzero().flatten().tolist())
        assert moved
        assert (moved <= set(sent.tolist())) is only


# ComPEFT ------------------------------------------------------------------------------------------------------------


def test_a_packed_change_is_read_as_it_was_meant():
    method = ComPEFT(density=0.1, alpha_up=2.0)
    tau = torch.randn(40_000, generator=torch.Generator().manual_seed(3))
    sent, read = method.packed(tau, len(tau))
    back = unpacked(Payload({"delta": sent}, 1.0, {"count": 4000}), len(tau))
    assert torch.equal(back, read)
    support = read != 0
    assert int(support.sum()) == 4000
    assert torch.equal(read[support].sign(), tau[support].sign())
    assert float(read.abs().max()) == pytest.approx(2 * float(tau.std(correction=0)), rel=1e-5)
    assert tau[~support].abs().max() <= tau[support].abs().min()


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2, 0.5])
def test_it_takes_the_entropy_and_hardly_more(density):
    tau = torch.randn(200_000, generator=torch.Generator().manual_seed(4))
    sent, _ = ComPEFT(density=density).packed(tau, len(tau))
    k = density
    entropy = (-k * math.log2(k) - (1 - k) * math.log2(1 - k) + k) * len(tau) / 8
    assert Payload({"delta": sent}).nbytes <= 1.03 * entropy


def test_what_is_left_out_comes_later(vit):
    method = ComPEFT(**SMALL, density=0.05, size="mean", feedback=True)
    driven = drive(method, vit.model, three(vit), vit.task, 3)
    size = sum(tensor.numel() for tensor in driven.state["weights"].values())
    left = driven.devices["a"].state["left"]
    assert left.shape == (size,)
    last = unpacked(driven.sent[2]["a"][0], size)
    assert int((last != 0).sum()) == how_many(0.05, size)
    plain = drive(replace(method, feedback=False), vit.model, three(vit), vit.task)
    first = unpacked(plain.sent[0]["a"][0], size)
    assert torch.equal(first, unpacked(driven.sent[0]["a"][0], size))  # nothing is kept before the first


def test_answers_that_nobody_packed_are_refused():
    sent, _ = ComPEFT(density=0.1).packed(torch.randn(500), 500)
    for bad, meta in ((sent, {}), (sent, {"count": 49}), (sent, {"count": 5000}), ({}, {"count": 50})):
        with pytest.raises(ProtocolError):
            unpacked(Payload({"delta": bad}, 1.0, meta), 500)
    with pytest.raises(ValueError, match="feedback needs"):
        ComPEFT(feedback=True)
