"""Exits at several depths: a shallow device trains what it holds, and deeper blocks never change what it says."""

from dataclasses import replace

import pytest
import torch

from fedge.methods.deploy.anytime import Anytime
from fedge.models.exits import MultiExit
from fedge.testing.driver import drive
from tests.methods.conftest import probe, rows, three
from tests.methods.test_tuning import coverage, heads

METHOD = Anytime(steps=3, batch=4, exits=(1, 2))


def driven_with_depths(found, rounds=2):
    picks = {"a": replace(METHOD, deepest=1), "b": replace(METHOD, deepest=2), "c": METHOD}
    return drive(METHOD, found.model, three(found), found.task, rounds, variants=picks)


def test_devices_hold_and_send_their_own_depth(either):
    driven = driven_with_depths(either)
    names = {device: set(driven.sent[1][device][0]["delta"]) for device in "abc"}
    parts = ("norm.weight", "norm.bias", "classifier.weight", "classifier.bias")
    of = {block: {f"exits.{block}.{part}" for part in parts} for block in (1, 2)}
    assert names == {"a": of[1], "b": of[1] | of[2], "c": of[1] | of[2] | set(heads(either))}
    depths = [len(driven.devices[device].model.parts.layers) for device in "abc"]
    assert depths == [1, 2, 4]
    assert driven.down[1]["a"] < driven.down[1]["b"] < driven.down[1]["c"]


def test_an_exit_is_the_mean_over_those_who_reach_it(either):
    driven = driven_with_depths(either, 1)
    start = METHOD.init(driven.server)["weights"]
    for name, tensor in coverage(start, driven.sent[0]).items():
        assert torch.allclose(driven.state["weights"][name].double(), tensor.double(), atol=1e-6), name


def test_a_shallow_device_says_what_the_whole_model_says_there(either):
    driven = driven_with_depths(either)
    final = driven.final().eval()
    assert isinstance(final, MultiExit)
    with torch.no_grad():
        whole = final(**probe(either))
        assert len(whole) == 3
        for device, count in (("a", 1), ("b", 2), ("c", 3)):
            found = driven.synced(device).eval()(**probe(either))
            assert len(found) == count
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, whole[:count], strict=True))
        assert torch.equal(METHOD.predict(final, probe(either)), whole[-1])


@pytest.mark.parametrize("backbone", [False, True])
def test_the_backbone_is_frozen_unless_asked_for(backbone, either):
    method = replace(METHOD, backbone=backbone)
    final = drive(method, either.model, three(either), either.task).final().state_dict()
    base = either.model.state_dict()
    moved = {name for name in base if not torch.equal(final[name], base[name])}
    blocks = {name for name in base if "layer." in name or "layers." in name}
    assert moved - blocks == set(heads(either))
    assert bool(moved & blocks) == backbone


def test_one_exit_learns_like_a_head_of_its_own(vit):
    data = {"a": rows(vit, 12)}
    method = Anytime(steps=40, batch=12, exits=(1,), lr=3e-2)
    driven = drive(method, vit.model, data, vit.task, 2)
    final = driven.final().eval()
    batch = next(data["a"].chunks(12))
    with torch.no_grad():
        before = [vit.task.loss_of(each, batch["labels"]) for each in driven.server.model()(**vit.task.inputs(batch))]
        after = [vit.task.loss_of(each, batch["labels"]) for each in final(**vit.task.inputs(batch))]
    assert all(b < a for a, b in zip(before, after, strict=True))


def test_exits_are_checked():
    with pytest.raises(ValueError, match="rising block numbers"):
        Anytime(exits=(2, 1))
    assert [v.deepest for v in METHOD.variants()] == [None, None, 2, 1]
