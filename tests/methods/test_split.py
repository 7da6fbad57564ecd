"""Split training is the same training: what is cut in two and sent gives what one machine would have got."""

import pytest
import torch

from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.train.split import Split
from fedge.models.names import tensors
from fedge.testing.driver import drive
from tests.methods.conftest import rows, three

#: Attention does not feel a bias of its keys; AdamW makes steps of the rounding that is its gradient.
KEYS = ("key.bias", "k_proj.bias")
NUMBERS = {"optimizer": "sgd", "lr": 0.1, "steps": 3, "batch": 4}


def final_tensors(driven):
    return tensors(driven.final())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_device_trains_as_one_model_would(optimizer, either):
    numbers = {**NUMBERS, "optimizer": optimizer, "lr": 0.1 if optimizer == "sgd" else 1e-4}
    data = {"a": rows(either, 10)}
    split = drive(Split(**numbers), either.model, data, either.task, 2)
    whole = drive(FedAvg(**numbers), either.model, data, either.task, 2)
    expected = final_tensors(whole)
    for name, tensor in final_tensors(split).items():
        if optimizer == "sgd" or not name.endswith(KEYS):
            assert torch.allclose(tensor, expected[name], atol=1e-6 if optimizer == "sgd" else 1e-5), name


def test_several_devices_average_both_halves(either):
    split = drive(Split(**NUMBERS), either.model, three(either), either.task, 2)
    whole = drive(FedAvg(**NUMBERS), either.model, three(either), either.task, 2)
    expected = final_tensors(whole)
    for name, tensor in final_tensors(split).items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name


def test_the_device_holds_and_sends_no_block_and_no_label(either):
    driven = drive(Split(**NUMBERS), either.model, three(either), either.task)
    model = driven.devices["a"].model
    assert not [name for name in model.state_dict() if "layer." in name or "layers." in name]
    sent = driven.sent[0]["a"]
    assert len(sent) == 2 * NUMBERS["steps"] + 1
    roles = [list(payload.parts) for payload in sent]
    assert roles == [["activations"], ["gradients"]] * NUMBERS["steps"] + [["delta"]]
    mask = {"mask"} if either.task.kind == "text-classification" else set()
    assert set(sent[0]["activations"]) == {"h"} | mask
    assert set(sent[1]["gradients"]) == {"h"}


def test_a_device_lost_in_the_middle_takes_nothing_with_it(vit):
    driven = drive(Split(**NUMBERS), vit.model, three(vit), vit.task, lost={(0, 3): ["b"]})
    without = drive(Split(**NUMBERS), vit.model, three(vit), vit.task, absent={0: ["b"]})
    expected = final_tensors(without)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in final_tensors(driven).items())
