"""Masks over frozen weights: what is drawn, what travels, and what the server makes of it, each written out."""

import math

import pytest
import torch

from fedge.codecs.chain import Chain
from fedge.codecs.mask import Mask
from fedge.core.payload import Payload
from fedge.core.rng import generator
from fedge.errors import MethodError
from fedge.methods.customize.deltamask import DeltaMask, divergence, flipped, seed_of, theta_of, uniforms
from fedge.methods.train.fedpm import FedPM
from fedge.models import mask as masks
from fedge.models.share import share
from fedge.models.variant import assemble
from fedge.testing.driver import drive
from tests.methods.conftest import logits, rows, three

SMALL = {"steps": 2, "batch": 4}


def test_bits_are_packed_and_found_again():
    for shape in ((1,), (8,), (3, 5), (4, 16)):
        mask = torch.rand(shape, generator=generator("bits", *shape)) < 0.3
        packed = masks.pack(mask)
        assert packed.numel() == math.ceil(mask.numel() / 8)
        assert torch.equal(masks.unpack(packed, mask.shape), mask)
        # the order in which numpy packs them, and the codec
        assert packed.tolist() == [
            sum(int(bit) << (7 - at) for at, bit in enumerate(mask.reshape(-1)[n : n + 8].tolist()))
            for n in range(0, mask.numel(), 8)
        ]
    with pytest.raises(MethodError, match="no mask of 9 weights"):
        masks.unpack(torch.zeros(1, dtype=torch.uint8), torch.Size([9]))


def test_the_gradient_is_that_of_the_probability():
    s = torch.randn(50, generator=generator("s")).requires_grad_()
    up = torch.randn(50, generator=generator("up"))
    (masks.drawn(s) * up).sum().backward()
    theta = torch.sigmoid(s.detach())
    assert torch.allclose(s.grad, up * theta * (1 - theta), atol=1e-6)
    assert set(masks.drawn(s).detach().round(decimals=5).unique().tolist()) <= {0.0, 1.0}


def test_fedpm_never_changes_its_random_weights(either):
    driven = drive(FedPM(**SMALL), either.model, three(either), either.task, 2)
    first = assemble(driven.server.method, either.model, *driven.server.seed).model
    for name, module in masks.layers(first).items():
        fan_in = module.weight[0].numel()
        sizes = module.weight.abs()
        assert torch.allclose(sizes, torch.full_like(sizes, math.e / math.sqrt(fan_in)))
        for device in driven.devices.values():
            assert torch.equal(device.model.get_submodule(name).weight, module.weight)
    final = driven.final()
    for name, theta in driven.state["theta"].items():
        owner, _, child = name.rpartition(".")
        kept = getattr(final.get_submodule(owner), child)
        weight = getattr(first.get_submodule(owner), child)
        assert torch.equal(kept, torch.where(theta > 0.5, weight, 0.0))


def test_fedpms_probability_is_the_smoothed_mean_of_the_masks(vit):
    driven = drive(FedPM(**SMALL), vit.model, three(vit), vit.task)
    sent = [payloads[-1]["mask"] for payloads in driven.sent[0].values()]
    for name, theta in driven.state["theta"].items():
        bits = [masks.unpack(one[name], theta.shape) for one in sent]
        expected = sum(torch.where(mask, 0.99, 0.01) for mask in bits) / 3
        assert torch.allclose(theta, expected, atol=1e-6)


def test_a_mask_takes_a_bit_a_weight_and_after_coding_its_entropy(vit):
    driven = drive(FedPM(**SMALL), vit.model, three(vit), vit.task, 2)
    count = sum(s.numel() for s in masks.scores(driven.devices["a"].model).values())
    for payloads in driven.sent[1].values():
        payload = payloads[-1]
        assert count <= 8 * payload.nbytes <= count + 8 * len(payload["mask"])
        coded = Chain((Mask(),)).encode(payload, generator("codec"), {})
        entropy = 0.0
        for packed in payload["mask"].values():
            share_of_ones = float(masks.unpack(packed, torch.Size([8 * len(packed)])).float().mean())
            entropy += 8 * len(packed) * binary_entropy(share_of_ones)
        assert 8 * coded.nbytes <= 1.02 * entropy + 64 * len(payload["mask"]) + 64


def binary_entropy(p):
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def test_deltamask_probes_first_and_then_masks_frozen_weights(either):
    method = DeltaMask(**SMALL, blocks=2)
    driven = drive(method, either.model, three(either), either.task, 3)
    assert [sorted({role for p in sent.values() for role in p[-1].parts}) for sent in driven.sent] == [
        ["delta"],
        ["mask"],
        ["mask"],
    ]
    names = list(masks.scores(driven.devices["a"].model))
    assert len(names) == 12  # q, k, v, o and both of the feed-forward, in two of the blocks
    base = either.model.state_dict()
    for device in driven.devices.values():
        own = dict(device.model.named_parameters())
        assert all(torch.equal(own[name], base[name]) for name in names)
    final = driven.final()
    theta = theta_of(driven.state)
    for name, tensor in final.state_dict().items():
        if name in theta:
            assert torch.equal(tensor, torch.where(theta[name] > 0.5, base[name], 0.0))
        elif name not in driven.state["weights"]:
            assert torch.equal(tensor, base[name])
    before = drive(method, either.model, three(either), either.task, 1)
    assert all(torch.equal(before.state["weights"][n], driven.state["weights"][n]) for n in before.state["weights"])


def test_deltamasks_posterior_is_the_mean_of_the_masks_that_devices_have(vit):
    method = DeltaMask(**SMALL, blocks=1, kappa=1.0)
    driven = drive(method, vit.model, three(vit), vit.task, 3)
    before = theta_of(drive(method, vit.model, three(vit), vit.task, 2).state)
    driven.server.round = 2
    seed = seed_of(driven.server)
    u = uniforms(before, seed)
    for name, theta in theta_of(driven.state).items():
        mine = [
            (u[name] < before[name]) ^ masks.unpack(payloads[-1]["mask"][name], theta.shape)
            for payloads in driven.sent[2].values()
        ]
        assert torch.allclose(theta, torch.stack(mine).float().mean(0).clamp(0.01, 0.99))
        # all places were sent, so a device's mask is the one that its own probabilities draw
        after = torch.sigmoid(masks.scores(driven.devices["c"].model)[name])
        assert torch.equal(mine[2], u[name] < after)


def test_deltamask_sends_the_largest_divergences():
    before = {"a": torch.full((400,), 0.5), "b": torch.full((100,), 0.9)}
    moved = {
        n: (t + 0.4 * (torch.rand(t.shape, generator=generator(n)) - 0.5)).clamp(0.01, 0.99) for n, t in before.items()
    }
    whole, part = (flipped(before, moved, 3, kappa) for kappa in (1.0, 0.5))
    u = uniforms(before, 3)
    assert all(torch.equal(whole[n], (u[n] < before[n]) != (u[n] < moved[n])) for n in before)
    count = sum(int(flip.sum()) for flip in whole.values())
    assert sum(int(flip.sum()) for flip in part.values()) == math.ceil(count / 2)
    heights = {n: divergence(moved[n], before[n]) for n in before}
    sent = torch.cat([heights[n][part[n]] for n in before])
    held = torch.cat([heights[n][whole[n] & ~part[n]] for n in before])
    assert sent.min() >= held.max()
    still = flipped(before, before, 3, 0.8)
    assert not any(flip.any() for flip in still.values())


def test_deltamask_takes_a_bit_a_weight_and_far_less_after_coding(vit):
    data = {name: rows(vit, 40, name) for name in "ab"}
    driven = drive(DeltaMask(steps=5, batch=16, blocks=3), vit.model, data, vit.task, 2)
    count = sum(s.numel() for s in masks.scores(driven.devices["a"].model).values())
    for payloads in driven.sent[1].values():
        payload = Payload.from_bytes(payloads[-1].to_bytes())
        assert 8 * payload.nbytes / count <= 1.1
        coded = Chain((Mask(),)).encode(payload, generator("codec"), {})
        assert coded.nbytes < 0.8 * payload.nbytes


def test_scores_leave_no_trace(vit):
    model = assemble(DeltaMask(blocks=1), vit.model, 0).model
    assert any(name.endswith(masks.SUFFIX) for name in model.state_dict())
    settled = masks.settle(model, {})
    assert set(settled.state_dict()) == set(vit.model.state_dict())
    assert torch.equal(logits(settled, vit), logits(vit.model, vit))
    with pytest.raises(MethodError, match="nothing of this"):
        masks.scores(share(vit.model))


@pytest.mark.parametrize("wrong", [{"kappa": 0.0}, {"blocks": 0}, {"depth": 0.5}, {"prox": 1.0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DeltaMask(**wrong)
