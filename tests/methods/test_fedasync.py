"""Asynchronous mixing against its formula, with arrival orders written down."""

import pytest
import torch

from fedge.methods.combine.fedasync import FedAsync
from fedge.methods.customize.head import Head
from fedge.methods.customize.lora import LoRA
from fedge.models.names import trainable
from fedge.testing.driver import drive
from tests.methods.conftest import three

#: Round by round, the order in which answers arrive; the first one counts.
ARRIVALS = ["abc", "bca", "cab", "abc", "bca"]


def in_order(round, turn, names):
    return sorted(names, key=ARRIVALS[round].index)


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"staleness": "constant"}, [1, 1, 1, 1, 1]),
        ({"a": 1.0}, [1, 1 / 2, 1 / 3, 1 / 3, 1 / 3]),
        ({"staleness": "hinge", "a": 2.0, "b": 1}, [1, 1, 1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_answers_are_mixed_in_by_their_age(vit, options, counts):
    method = FedAsync(inner=Head(steps=2, batch=4), mixing=0.6, **options)
    driven = drive(method, vit.model, three(vit), vit.task, len(ARRIVALS), order=in_order)
    weights = method.init(driven.server)["weights"]
    # a's of round 0, b's of 0, c's of 0, a's of 1, b's of 2: each is asked again in the round after its answer
    for (name, asked), count in zip([("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 2)], counts, strict=True):
        for tensor in weights:
            new = driven.sent[asked][name][-1]["weights"][tensor].double()
            weights[tensor] = (1 - 0.6 * count) * weights[tensor].double() + 0.6 * count * new
    for name, tensor in weights.items():
        assert torch.allclose(driven.state["weights"][name].double(), tensor, atol=1e-6)


def test_what_is_sent_is_where_the_device_stands(vit):
    method = FedAsync(inner=LoRA(steps=2, batch=4, rank=4, train_rank=2), mixing=1.0, staleness="constant")
    driven = drive(method, vit.model, {"a": three(vit)["a"]}, vit.task, 2)
    sent = driven.sent[-1]["a"][-1]["weights"]
    assert set(sent) <= set(driven.state["weights"])
    for name, tensor in sent.items():
        block = driven.state["weights"][name][tuple(slice(0, size) for size in tensor.shape)]
        assert torch.equal(block, tensor), "with all of it mixed in, the server stands where the device does"
    held = {name: parameter.detach() for name, parameter in trainable(driven.synced("a")).items()}
    assert all(torch.equal(held[name], tensor) for name, tensor in sent.items())


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="can't be buffered"):
        FedAsync(inner="split")
    with pytest.raises(ValueError, match="mixing in"):
        FedAsync(mixing=0)
    with pytest.raises(ValueError, match="staleness is"):
        FedAsync(staleness="linear")
