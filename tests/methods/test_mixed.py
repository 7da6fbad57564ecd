"""Mixed cohorts against the dense sum: ranks and depths of FLoRA beside full fine-tuning and heads, exactly."""

import pytest
import torch

from fedge.methods.combine.mixed import Mixed, clash
from fedge.methods.customize.bitfit import BitFit
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.flora import FLoRA
from fedge.methods.customize.head import Head
from fedge.methods.customize.hetlora import HetLoRA
from fedge.methods.customize.lora import LoRA
from fedge.models.lora import paired
from fedge.models.names import tensors
from fedge.testing.driver import drive
from tests.methods.conftest import rows

SMALL = {"steps": 2, "batch": 4}
MEMBERS = (FedAvg(**SMALL, lr=1e-2), FLoRA(**SMALL, rank=4, lr=1e-2), BitFit(**SMALL), Head(**SMALL))
#: Who trains what: everything, adapters of two ranks and depths, the upper half, biases, the head.
PICKS = {
    "a": MEMBERS[0],
    "b": MEMBERS[1],
    "c": FLoRA(**SMALL, rank=2, depth=0.5, lr=1e-2),
    "d": FedAvg(**SMALL, depth=0.5, lr=1e-2),
    "e": MEMBERS[2],
    "f": MEMBERS[3],
}


def run(found, rounds, members=MEMBERS, picks=PICKS, **about):
    mixed = Mixed(members=members)
    variants = {name: Mixed(members=members, member=pick) for name, pick in picks.items()}
    data = {name: rows(found, 6 + 3 * i, name) for i, name in enumerate(picks)}
    return drive(mixed, found.model, data, found.task, rounds, variants=variants, **about)


def dense(driven, name, reply):
    """A device's change of every tensor, in float64, its adapters multiplied out."""
    moved = {n: t.double() for n, t in reply.parts.get("delta", {}).items()}
    for module, (a, b) in paired(reply.parts.get("weights", {})).items():
        moved[f"{module}.weight"] = PICKS[name].scale * (b.double() @ a.double())
    return moved


def test_a_tensor_is_the_mean_over_those_who_trained_it_whole_or_by_adapters(either):
    driven = run(either, 3)
    weights = {n: t.double() for n, t in Mixed(members=MEMBERS).init(driven.server)["weights"].items()}
    ways = {}
    for sent in driven.sent:
        moves = {name: dense(driven, name, answers[-1]) for name, answers in sent.items()}
        for tensor in weights:
            who = [name for name in moves if tensor in moves[name]]
            ways[tensor] = who
            total = sum(sent[name][-1].weight for name in who)
            weights[tensor] = weights[tensor] + sum(sent[name][-1].weight / total * moves[name][tensor] for name in who)
    for name, expected in weights.items():
        assert torch.allclose(driven.state["weights"][name].double(), expected, atol=1e-5), name
    assert ["a", "b", "c", "d"] in ways.values(), "whole and by adapters, in one mean"
    assert ["a", "b"] in ways.values(), "the lower layers"
    assert not any("lora_" in name for name in driven.state["weights"]), "adapters are no part of the function"


def test_every_device_runs_the_whole_function_whatever_it_missed(either):
    driven = run(either, 3, absent={1: ["c", "f"], 2: ["b"]})
    final = driven.final().eval()
    batch = either.task.inputs(next(rows(either, 4, "seen").chunks(4)))
    with torch.no_grad():
        expected = final(**batch).logits if hasattr(final(**batch), "logits") else final(**batch)
        for name in PICKS:
            found = driven.synced(name).eval()(**batch)
            assert torch.equal(getattr(found, "logits", found), expected), name
    assert set(tensors(final)) == set(tensors(either.model)), "a plain model of the base's architecture"


def test_a_cohort_of_adapters_alone_is_flora(vit):
    # plain descent: Adam would make a different step of what is rounded differently
    alone = FLoRA(**SMALL, rank=4, lr=1e-1, optimizer="sgd")
    data = {name: rows(vit, 8, name) for name in "ab"}
    mixed = Mixed(members=(alone,))
    variants = dict.fromkeys(data, Mixed(members=(alone,), member=alone))
    together = drive(mixed, vit.model, data, vit.task, 3, variants=variants).final()
    plain = drive(alone, vit.model, data, vit.task, 3).final()
    for name, tensor in tensors(plain).items():
        assert torch.allclose(tensors(together)[name], tensor, atol=1e-6), name


def test_who_cannot_share_a_round_is_told():
    assert clash([LoRA(), BitFit(), FedAvg(), Head()]) is None
    assert clash([FLoRA(), FedAvg(), Head()]) is None
    index, why = clash([Head(), LoRA(), FLoRA()])
    assert (index, "adapters" in why) == (2, True)
    index, why = clash([Head(), HetLoRA()])
    assert (index, "tensors of one model" in why) == (1, True)


@pytest.mark.parametrize("order", [MEMBERS, MEMBERS[::-1]])
def test_the_order_of_candidates_changes_no_tensor_that_is_averaged(vit, order):
    driven = run(vit, 1, members=order)
    assert set(driven.state["weights"]) == set(run(vit, 1).state["weights"])
