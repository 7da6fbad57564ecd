"""InclusiveFL and ScaleFL: what a tier holds, and what becomes of a round, from the answers themselves."""

from dataclasses import replace

import pytest
import torch

from fedge.errors import MissingError
from fedge.methods.deploy.inclusivefl import InclusiveFL
from fedge.methods.deploy.scalefl import ScaleFL
from fedge.models.exits import MultiExit
from fedge.models.narrow import narrowed
from fedge.models.share import share
from fedge.plan.trace import Setting, measure
from fedge.testing.driver import drive
from fedge.testing.tiny import tiny
from tests.methods.conftest import loaded, probe, three
from tests.methods.test_joint import crossed, kl, three_exits  # noqa: F401  a fixture
from tests.methods.test_tuning import coverage

TIERS = InclusiveFL(steps=2, batch=4, exits=(1, 2))
SCALED = ScaleFL(steps=2, batch=4, exits=(1, 2), widths=(0.5, 0.75))


def driven(method, found, rounds=1, depths=(1, 2, None)):
    picks = {device: replace(method, deepest=depth) for device, depth in zip("abc", depths, strict=True)}
    return drive(method, found.model, three(found), found.task, rounds, variants=picks)


def prefixes(found):
    return MultiExit(share(found.model), (1,), 4).parts.layer_prefixes


def by_server_names(found, sent):
    """Each answer with its tier's own block under the name that it has in the whole model."""
    renamed = {}
    for device, depth in (("a", 1), ("b", 2), ("c", 4)):
        if device in sent:
            delta, last = sent[device][0]["delta"], prefixes(found)[depth - 1]
            own = f"exits.{depth}.block." if depth < 4 else last
            renamed[device] = {name.replace(last, own): tensor for name, tensor in delta.items()}
    return renamed


def test_a_tier_has_its_last_block_and_one_exit_to_itself(either):
    run = driven(TIERS, either, 2)
    sent = by_server_names(either, run.sent[1])
    blocks = {
        d: {i for i, p in enumerate(prefixes(either)) if any(n.startswith(p) for n in s)} for d, s in sent.items()
    }
    assert blocks == {"a": set(), "b": {0}, "c": {0, 1, 2, 3}}
    exits = {d: {n.split(".")[1] for n in s if n.startswith("exits.")} for d, s in sent.items()}
    assert exits == {"a": {"1"}, "b": {"2"}, "c": set()}
    assert [len(run.devices[d].model.parts.layers) for d in "abc"] == [1, 2, 4]
    assert [len(run.devices[d].model(**probe(either))) for d in "abc"] == [1, 1, 1]


def test_without_momentum_tiers_average_alone_and_shared_blocks_over_all(either):
    run = driven(replace(TIERS, beta=0.0), either)
    start = TIERS.init(run.server)["weights"]
    replies = by_server_names(either, run.sent[0])
    payloads = {
        d: [type(run.sent[0][d][0])({"delta": delta}, run.sent[0][d][0].weight)] for d, delta in replies.items()
    }
    for name, tensor in coverage(start, payloads).items():
        assert torch.allclose(run.state["weights"][name].double(), tensor.double(), atol=1e-6), name


def test_a_tiers_last_block_takes_up_what_the_next_one_learnt_beyond_it(either):
    run = driven(TIERS, either, 1)
    before, first = run.state["weights"], by_server_names(either, run.sent[0])
    run.go(1)
    second = by_server_names(either, run.sent[1])
    p = prefixes(either)
    for name in [name for name in before if name.startswith("exits.1.block.")]:
        inner = name.removeprefix("exits.1.block.")
        expected = before[name] + 0.8 * second["a"][name] + 0.2 * first["b"][f"exits.2.block.{inner}"]
        assert torch.allclose(run.state["weights"][name], expected, atol=1e-6), name
    for name in [name for name in before if name.startswith("exits.2.block.")]:
        inner = name.removeprefix("exits.2.block.")
        beyond = (first["c"][p[2] + inner] + first["c"][p[3] + inner]) / 2
        expected = before[name] + 0.8 * second["b"][name] + 0.2 * beyond
        assert torch.allclose(run.state["weights"][name], expected, atol=1e-6), name
    run.go(1, absent={2: ["b"]})
    assert set(run.state["momentum"]) == {"1", "4"}


def test_a_tier_says_what_the_whole_model_says_at_its_exit(either):
    run = driven(TIERS, either, 2)
    final = run.final().eval()
    with torch.no_grad():
        whole = final(**probe(either))
        assert len(whole) == 3
        for device, said in zip("abc", whole, strict=True):
            (mine,) = run.synced(device).eval()(**probe(either))
            assert torch.equal(mine, said)
        for depth, count in ((1, 1), (2, 2)):
            cut = final.cut(depth)
            assert len(cut.parts.layers) == depth
            assert all(torch.equal(a, b) for a, b in zip(cut(**probe(either)), whole[:count], strict=True))


@pytest.mark.parametrize("name", ["vit-nano", "bert-nano"])
def test_a_narrow_model_is_the_leading_block_of_every_tensor(name):
    found = loaded(name)
    wide = MultiExit(share(found.model), (1, 2), 4).cut(2)
    thin = narrowed(wide, 0.75)
    config = thin.parts.config
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (48, 3, 96)
    big = wide.state_dict()
    for key, tensor in thin.state_dict().items():
        assert torch.equal(tensor, big[key][tuple(slice(size) for size in tensor.shape)]), key
    with torch.no_grad():
        logits = thin.eval()(**probe(found))
    assert [one.shape for one in logits] == [(6, 4)] * 2
    assert all(torch.isfinite(one).all() for one in logits)
    with pytest.raises(MissingError, match="width"):
        narrowed(MultiExit(share(tiny("causal").model), (1,), 4), 0.5)


def test_each_number_is_the_mean_over_those_whose_width_and_depth_hold_it(either):
    run = driven(SCALED, either)
    start = SCALED.init(run.server)["weights"]
    for name, tensor in coverage(start, run.sent[0]).items():
        assert torch.allclose(run.state["weights"][name].double(), tensor.double(), atol=1e-6), name
    head = run.sent[0]["a"][0]["delta"]["exits.1.classifier.weight"]
    assert head.shape == (4, 32)


def test_a_narrow_device_starts_where_the_others_are(either):
    run = driven(SCALED, either, 2)
    mine = dict(run.synced("a").named_parameters())
    for name, tensor in run.state["weights"].items():
        if name in mine:
            assert torch.equal(mine[name], tensor[tuple(slice(size) for size in mine[name].shape)]), name


def test_the_last_exit_teaches_after_the_warm_up(three_exits):  # noqa: F811
    dev, logits, batch = three_exits
    losses = [crossed(each, batch["labels"]) for each in logits]
    method = ScaleFL(exits=(1, 2, 3), distil=0.05, warmup=150)
    weighed = sum(weight * loss for weight, loss in zip((1, 2, 3), losses, strict=True))
    taught = sum(weight * 0.05 * 9 * kl(logits[2], each, 3.0) for weight, each in zip((1, 2), logits, strict=False))
    assert method.exits_loss(dev, logits, batch).item() == pytest.approx((weighed + taught) / 6, rel=1e-5)
    late = replace(method, warmup=151)
    assert late.exits_loss(dev, logits, batch).item() == pytest.approx(weighed / 6, rel=1e-5)


@pytest.mark.parametrize("method", [InclusiveFL(steps=1, batch=4), ScaleFL(steps=1, batch=4)])
def test_a_shallow_device_pays_for_no_deeper_block(method):
    found = tiny("image")
    setting = Setting(found.model, found.task, found.rows(8))
    costs = [measure(method, replace(method, deepest=depth), setting) for depth in (2, None)]
    for name in ("peak_memory", "flops", "traffic", "bytes_up", "bytes_down"):
        values = [getattr(cost, name) for cost in costs]
        assert values[0] < values[1], name


def test_numbers_are_checked():
    for made, said in (
        (lambda: InclusiveFL(beta=1), "share"),
        (lambda: ScaleFL(widths=(0.5, 1.0)), "as many widths"),
        (lambda: ScaleFL(widths=(1.0, 0.5, 1.0)), "rising"),
        (lambda: ScaleFL(warmup=-1), "at least 0"),
    ):
        with pytest.raises(ValueError, match=said):
            made()
