"""Buffered asynchronous averaging against its formula, with arrival orders written down."""

import pytest
import torch

from fedge.methods.combine.fedbuff import FedBuff
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.head import Head
from fedge.testing.driver import drive
from tests.methods.conftest import three

#: Round by round, the order in which answers arrive; the first two count, the third is late.
ARRIVALS = ["abc", "abc", "cab", "bca"]


def test_a_buffer_for_all_is_fedavg_bit_for_bit(vit):
    inner = FedAvg(steps=2, batch=4)
    plain = drive(inner, vit.model, three(vit), vit.task, 2)
    buffered = drive(FedBuff(inner=inner, buffer=3), vit.model, three(vit), vit.task, 2)
    assert all(torch.equal(plain.state["weights"][n], t) for n, t in buffered.state["weights"].items())


def test_late_changes_count_by_their_age(vit):
    method = FedBuff(inner=Head(steps=2, batch=4), buffer=2, damping=0.5)

    def order(round, turn, names):
        return sorted(names, key=ARRIVALS[round].index)

    driven = drive(method, vit.model, three(vit), vit.task, len(ARRIVALS), order=order)
    # who still computes is not asked again
    assert ["".join(sorted(sent)) for sent in driven.sent] == ["abc", "ab", "ab", "ac"]
    weights = method.init(driven.server)["weights"]
    for number, came in enumerate([{"a": 0, "b": 0}, {"a": 1, "b": 1}, {"c": 0, "a": 2}, {"b": 2, "c": 3}]):
        replies = [(number - asked, driven.sent[asked][name][-1]) for name, asked in came.items()]
        rows = sum(reply.weight for _, reply in replies)
        for name in weights:
            moved = sum((1 + age) ** -0.5 * r.weight * r["delta"][name].double() for age, r in replies)
            weights[name] = weights[name] + moved / rows
    for name, tensor in weights.items():
        assert torch.allclose(driven.state["weights"][name].double(), tensor, atol=1e-6)


def test_what_can_not_be_buffered_is_refused():
    with pytest.raises(ValueError, match="can't be buffered"):
        FedBuff(inner="split")
    with pytest.raises(ValueError, match="buffer must be above 0"):
        FedBuff(buffer=0)
    assert FedBuff(inner="lora", steps=3, lr=0.5).trains.lr == 0.5
