"""Exits that accumulate class tokens: a shallow device trains what it holds, and no deeper block changes its answer."""

from dataclasses import replace

import pytest
import torch

from fedge.core.method import Replies
from fedge.methods.deploy.anytime import Anytime
from fedge.models.exits import MultiExit
from fedge.plan.trace import Setting, measure
from fedge.testing.driver import drive
from fedge.testing.tiny import tiny
from tests.methods.conftest import probe, three
from tests.methods.test_tuning import coverage

METHOD = Anytime(steps=3, batch=4, exits=(1, 2))
FORMS = {"shared": METHOD, "each": replace(METHOD, shared=False), "still": replace(METHOD, modulate=False)}


@pytest.fixture(params=FORMS)
def method(request):
    return FORMS[request.param]


def driven_with_depths(method, found, rounds=2):
    picks = {"a": replace(method, deepest=1), "b": replace(method, deepest=2), "c": method}
    return drive(method, found.model, three(found), found.task, rounds, variants=picks)


def test_devices_hold_and_send_their_own_depth(method, either):
    driven = driven_with_depths(method, either)
    sent = {device: driven.sent[1][device][0]["delta"] for device in "abc"}
    assert {device: len(delta["accumulator.position"]) for device, delta in sent.items()} == {"a": 2, "b": 3, "c": 5}
    layers = {d: {n.split(".")[2] for n in delta if n.startswith("accumulator.layers")} for d, delta in sent.items()}
    alone = {"a": {"0"}, "b": {"0", "1"}, "c": {"0", "1", "2", "3"}}
    assert layers == ({device: {"0"} for device in "abc"} if method.shared else alone)
    assert all(name.startswith("accumulator.") for delta in sent.values() for name in delta)
    depths = [len(driven.devices[device].model.parts.layers) for device in "abc"]
    assert depths == [1, 2, 4]
    assert driven.down[1]["a"] < driven.down[1]["b"] < driven.down[1]["c"]


def test_each_number_is_the_mean_over_those_who_reach_it(method, either):
    driven = driven_with_depths(method, either, 1)
    start = method.init(driven.server)["weights"]
    for name, tensor in coverage(start, driven.sent[0]).items():
        assert torch.allclose(driven.state["weights"][name].double(), tensor.double(), atol=1e-6), name
    moved = driven.state["weights"]["accumulator.position"] != start["accumulator.position"]
    assert moved[0].any()


def test_a_shallow_device_says_what_the_whole_model_says_there(method, either):
    driven = driven_with_depths(method, either)
    final = driven.final().eval()
    assert isinstance(final, MultiExit)
    with torch.no_grad():
        whole = final(**probe(either))
        assert len(whole) == 3
        for device, count in (("a", 1), ("b", 2), ("c", 3)):
            found = driven.synced(device).eval()(**probe(either))
            assert len(found) == count
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, whole[:count], strict=True))
        assert torch.equal(method.predict(final, probe(either)), whole[-1])


@pytest.mark.parametrize("backbone", [False, True])
def test_the_backbone_is_frozen_unless_asked_for(backbone, either):
    method = replace(METHOD, backbone=backbone)
    final = drive(method, either.model, three(either), either.task).final().state_dict()
    base = either.model.state_dict()
    moved = {name for name in base if name in final and not torch.equal(final[name], base[name])}
    assert all("layer" in name for name in moved)
    assert bool(moved) == backbone


def test_who_has_one_exit_and_no_deeper_block_trains_like_anyone_alone(vit):
    """All at one depth with one exit: plain averaging of what the first device would have trained alone."""
    method = Anytime(steps=2, batch=4, exits=(1,), deepest=1)
    rows = three(vit)["b"]
    alone = drive(method, vit.model, {"a": rows}, vit.task).state["weights"]
    again = drive(method, vit.model, {"a": rows, "b": rows}, vit.task)
    for name, tensor in alone.items():  # same rows, other batches: only what was sent may enter
        payloads = [again.sent[0][device][0]["delta"][name] for device in "ab"]
        mean = method.init(again.server)["weights"][name] + sum(payloads) / 2
        assert torch.allclose(again.state["weights"][name], mean, atol=1e-6)
        assert tensor.shape == mean.shape


def test_a_shallow_device_pays_for_no_deeper_block():
    """Traced memory, work and bytes for the exit after 2 blocks of 6 and for all of them."""
    found = tiny("image")
    method = Anytime(steps=1, batch=4)
    setting = Setting(found.model, found.task, found.rows(8))
    costs = [measure(method, replace(method, deepest=depth), setting) for depth in (2, 4, None)]
    for name in ("peak_memory", "shared", "flops", "traffic", "bytes_up", "bytes_down"):
        values = [getattr(cost, name) for cost in costs]
        assert values[0] < values[1] < values[2], name
    # forward through 6 and 2 blocks, and back through all but the first, whose input nobody modulates: 11 to 3
    assert 3.3 < costs[2].flops / costs[0].flops < 4
    blocks = [name for name, _ in found.model.named_parameters() if ".layers." in name]
    held = {name for name, _ in replace(method, deepest=2).build(_shared(found)).named_parameters()}
    assert {name.split(".")[2] for name in blocks if name in held} == {"0", "1"}


def _shared(found):
    from fedge.models.share import share

    return share(found.model)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_language_models_learn_at_every_exit(kind):
    found = tiny(kind)
    method = Anytime(steps=30, batch=8, lr=1e-2)
    rows = found.rows(8)
    driven = drive(method, found.model, {"a": rows, "b": rows}, found.task, variants={"a": replace(method, deepest=2)})
    batch = next(rows.chunks(8))
    final = driven.final().eval()
    with torch.no_grad():
        before, after = (
            [found.task.loss_of(each, batch["labels"]) for each in model(**found.task.inputs(batch))]
            for model in (driven.server.model().eval(), final)
        )
    assert len(after) == 3
    assert all(b < a for a, b in zip(before, after, strict=True))
    assert not [name for name in driven.sent[0]["a"][0]["delta"] if "lm_head" in name or "wte" in name]


def test_who_is_judged_the_last_exit_the_exits_or_the_devices(vit):
    driven = driven_with_depths(METHOD, vit)
    final = driven.final().eval()
    with torch.no_grad():
        one, two, last = final(**probe(vit))
        said = {how: replace(METHOD, ensemble=how).predict(final, probe(vit)) for how in ("none", "exits", "clients")}
    assert torch.equal(said["none"], last)
    assert torch.allclose(said["exits"], (one + two + last) / 3, atol=1e-6)
    assert torch.allclose(said["clients"], (one + two + last) / 3, atol=1e-6)  # a device at each
    replies = Replies({d: driven.sent[1][d][0] for d in "ac"}, dict.fromkeys("ac", 1), {})
    driven.server.variants = {**driven.server.variants, "c": replace(METHOD, deepest=1)}
    state = METHOD.update(driven.server, driven.state, replies)
    assert state["depths"] == {"1": 2}
    final = METHOD.final(driven.server, state).eval()
    with torch.no_grad():
        clients = replace(METHOD, ensemble="clients").predict(final, probe(vit))
        assert torch.allclose(clients, final(**probe(vit))[0], atol=1e-6)


def test_exits_are_checked():
    with pytest.raises(ValueError, match="rising block numbers"):
        Anytime(exits=(2, 1))
    with pytest.raises(ValueError, match="deepest"):
        Anytime(depth=0.5)
    assert [v.deepest for v in METHOD.variants()] == [None, None, 2, 1]
