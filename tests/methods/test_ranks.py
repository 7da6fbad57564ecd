"""Methods with a table of ranks: padding, weights by norm, pruning, who is rich."""

from dataclasses import replace

import pytest
import torch

from fedge.core.method import Replies
from fedge.core.payload import Payload
from fedge.methods.customize.fedex_lora import FedExLoRA
from fedge.methods.customize.flexlora import FlexLoRA
from fedge.methods.customize.flora import FLoRA
from fedge.methods.customize.hetlora import HetLoRA, tail
from fedge.methods.customize.replication_padding import ReplicationPadding
from tests.methods.lowrank import PREFIX, apart, factors, go


def reply(method, rank, tail_of_b=None, weight=1.0):
    """What a device of a rank would send, one module, drawn."""
    a, b = torch.randn(rank, 7, dtype=torch.float64), torch.randn(5, rank, dtype=torch.float64)
    if tail_of_b is not None:
        b[:, -1] = tail_of_b
    return Payload({"weights": {f"{PREFIX}m.lora_A.weight": a, f"{PREFIX}m.lora_B.weight": b}, "delta": {}}, weight)


class Table:
    """As much of a server as an update of factors asks for."""

    def __init__(self, variants):
        self.variants, self.optimizer = variants, None

    def __getattr__(self, name):
        raise AssertionError(f"an update of factors asked for {name}")


def updated(method, replies, ranks, monkeypatch):
    module = __import__(type(method).__module__, fromlist=["average"])
    monkeypatch.setattr(module, "average", lambda srv, state, replies: state)
    full = {f"{PREFIX}m.lora_A.weight": torch.full((4, 7), 9.0).double()}
    full[f"{PREFIX}m.lora_B.weight"] = torch.full((5, 4), 9.0).double()
    srv = Table({device: replace(method, rank=rank) for device, rank in ranks.items()})
    state = {"factors": full, "ranks": {}, "losses": {}, "rich": []}
    return method.update(srv, state, Replies(replies, dict.fromkeys(replies, 0), {}))


def test_hetlora_pads_and_weighs_by_the_norm_of_updates(monkeypatch):
    torch.manual_seed(0)
    method = HetLoRA(rank=4)
    ranks = {"a": 1, "b": 3, "c": 2}
    replies = {device: reply(method, rank) for device, rank in ranks.items()}
    found = updated(method, replies, ranks, monkeypatch)["factors"]
    pairs = {device: factors(payload, "m") for device, payload in replies.items()}
    norms = {device: torch.linalg.svdvals(b @ a).norm() for device, (a, b) in pairs.items()}
    total = sum(norms.values())
    expected_a, expected_b = torch.zeros(3, 7).double(), torch.zeros(5, 3).double()
    for device, (a, b) in pairs.items():
        expected_a[: len(a)] += norms[device] / total * a
        expected_b[:, : len(a)] += norms[device] / total * b
    assert apart(found[f"{PREFIX}m.lora_A.weight"][:3], expected_a) < 1e-10
    assert apart(found[f"{PREFIX}m.lora_B.weight"][:, :3], expected_b) < 1e-10
    assert (found[f"{PREFIX}m.lora_A.weight"][3] == 9).all()  # nobody holds the fourth slot
    turned = updated(method, dict(reversed(replies.items())), ranks, monkeypatch)["factors"]
    assert all(torch.equal(found[name], turned[name]) for name in found)


def test_replication_keeps_what_zero_padding_dilutes(monkeypatch):
    torch.manual_seed(0)
    ranks = {"a": 2, "b": 4, "c": 2}
    replies = {device: reply(None, rank) for device, rank in ranks.items()}
    rich = factors(replies["b"], "m")[0]
    found = updated(ReplicationPadding(rank=4, low=2), replies, ranks, monkeypatch)["factors"]
    assert apart(found[f"{PREFIX}m.lora_A.weight"][2:], rich[2:]) < 1e-12
    # the paper's own steps: the rich mean fills the gap, then all are averaged
    filled = [torch.cat([factors(p, "m")[0], rich[len(factors(p, "m")[0]) :]]) for p in replies.values()]
    assert apart(found[f"{PREFIX}m.lora_A.weight"], sum(filled) / 3) < 1e-12
    monkeypatch.undo()
    diluted = updated(HetLoRA(rank=4, norms="module"), replies, ranks, monkeypatch)["factors"]
    assert float(diluted[f"{PREFIX}m.lora_A.weight"][2:].norm()) < 0.9 * float(rich[2:].norm())


def test_equal_ranks_that_weigh_alike_are_averaged_plainly(monkeypatch):
    same = reply(None, 4)
    ranks = dict.fromkeys("abc", 4)
    for method in (HetLoRA(rank=4), ReplicationPadding(rank=4, low=2)):
        found = updated(method, dict.fromkeys("abc", same), ranks, monkeypatch)["factors"]
        assert all(apart(found[name], tensor) < 1e-12 for name, tensor in same["weights"].items())
        monkeypatch.undo()


def test_a_tail_that_shrinks_is_pruned_and_stays_so(vit):
    method = HetLoRA(steps=4, batch=4, lr=1e-2, rank=8, gamma=0.5, penalty=50.0, least=2)
    driven = go(method, vit, 1)
    # B begins at zero: no tail can be smaller than that
    assert driven.state["ranks"] == {}
    driven = go(method, vit, 4)
    ranks = [
        {d: p["weights"][f"{PREFIX}vit.layers.0.attention.q_proj.lora_A.weight"].shape[0] for d, (p,) in s.items()}
        for s in driven.sent
    ]
    assert ranks[0] == dict.fromkeys("abc", 8)
    for device in "abc":
        found = [sent[device] for sent in ranks]
        assert set(found) <= {8, 4, 2}
        assert found == sorted(found, reverse=True)
        assert found[-1] == driven.state["ranks"][device] < 8
    assert driven.up[3]["a"] < driven.up[0]["a"]
    for device in "abc":
        module = driven.synced(device).get_submodule("vit.layers.0.attention.q_proj")
        assert not module.lora_A["default"].weight[driven.state["ranks"][device] :].any()


def test_the_tail_is_nothing_when_either_factor_s_is():
    a, b = torch.randn(4, 7), torch.randn(5, 4)

    def size(a, b, kept):
        return float(tail({f"{PREFIX}m.lora_A.weight": a, f"{PREFIX}m.lora_B.weight": b}, kept))

    assert size(a, b, 2) == pytest.approx(float(b[:, 2:].norm() * a[2:].norm()))
    assert (
        size(a, b, 4)
        == size(torch.cat([a[:3], 0 * a[3:]]), b, 3)
        == size(a, torch.cat([b[:, :3], 0 * b[:, 3:]], 1), 3)
        == 0
    )


def test_the_best_score_gets_the_rank(vit):
    method = ReplicationPadding(steps=2, batch=4, lr=1e-2, rank=8, low=2, rich=0.4)
    driven = go(method, vit, 3)
    losses = {device: float(p["scalars"]["loss"]) for device, (p,) in driven.sent[0].items()}
    assert driven.state["losses"] == losses
    best = sorted(losses, key=losses.get)[:2]
    assert sorted(driven.state["rich"]) == sorted(best)
    name = f"{PREFIX}vit.layers.0.attention.q_proj.lora_A.weight"
    ranks = [{device: len(p["weights"][name]) for device, (p,) in sent.items()} for sent in driven.sent]
    assert ranks[0] == dict.fromkeys("abc", 2)
    assert ranks[1] == ranks[2] == {device: 8 if device in best else 2 for device in "abc"}
    assert all("scalars" not in p.parts or not p["scalars"] for (p,) in driven.sent[1].values())


def test_capability_gives_each_device_what_it_can_afford(vit):
    method = ReplicationPadding(steps=1, batch=4, rank=8, low=2, rank_source="capability")
    driven = go(method, vit, 1, {"a": method, "b": replace(method, rank=4), "c": replace(method, rank=2)})
    name = f"{PREFIX}vit.layers.0.attention.q_proj.lora_A.weight"
    assert {d: len(p["weights"][name]) for d, (p,) in driven.sent[0].items()} == {"a": 8, "b": 4, "c": 2}
    assert driven.state["losses"] == {}


def test_numbers_out_of_range_are_refused():
    for build, said in [
        (lambda: FLoRA(rank=0), "rank must be above 0"),
        (lambda: FlexLoRA(weighting="size"), "rows or uniform"),
        (lambda: FedExLoRA(residual_rank=0), "residual_rank"),
        (lambda: HetLoRA(gamma=0), "gamma in"),
        (lambda: ReplicationPadding(rich=0), "rich in"),
    ]:
        with pytest.raises(ValueError, match=said):
            build()
    assert {variant.rank for variant in FedExLoRA().variants()} == {8}
    assert [variant.rank for variant in FlexLoRA().variants()] == [8, 8, 8, 4, 2]
