from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fedge.models.load import MINILM
from fedge.models.share import own, share, storage, storages
from tests.models.conftest import NANOS, inputs_for

ALL = [*NANOS, (MINILM, "text-classification")]


def faked(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    twin = share(model)
    memo: dict[int, nn.Parameter] = {}
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in memo:
                    memo[id(parameter)] = nn.Parameter(mode.from_tensor(parameter.detach()), requires_grad=False)
                module._parameters[name] = memo[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)
    return twin


@pytest.mark.parametrize(("name", "task"), ALL)
def test_a_shared_copy_aliases_everything_and_keeps_ties(loaded, name, task):
    base = loaded(name, task).model
    twin = share(base)
    assert storages(twin) == storages(base)
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in base.named_parameters()]
    for mine, theirs in zip(twin.parameters(), base.parameters(), strict=True):
        assert mine is not theirs
        assert mine.data_ptr() == theirs.data_ptr()
        assert not mine.requires_grad
    with torch.no_grad():
        inputs = inputs_for(loaded(name, task))
        assert torch.equal(twin(**inputs).logits, base(**inputs).logits)


def test_writing_to_what_is_owned_leaves_the_base_alone(loaded):
    base = loaded("gpt-nano", "causal-lm").model
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    twin = share(base)
    twin.lm_head.weight.requires_grad_(True)
    own(twin, storages(base))
    with torch.no_grad():
        twin.lm_head.weight.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert twin.lm_head.weight is twin.transformer.wte.weight
    assert twin.transformer.wpe.weight.data_ptr() == base.transformer.wpe.weight.data_ptr()


def test_own_copies_only_what_lies_in_the_base_and_buffers_when_asked():
    base = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    twin = share(base)
    fresh = nn.Parameter(torch.ones(3))
    twin[0].bias = fresh
    twin[0].weight.requires_grad_(True)
    pointer = fresh.data_ptr()
    own(twin, storages(base), buffers=True)
    assert fresh.data_ptr() == pointer
    assert twin[0].weight.data_ptr() != base[0].weight.data_ptr()
    assert twin[1].running_mean.data_ptr() != base[1].running_mean.data_ptr()
    assert twin[1].weight.data_ptr() == base[1].weight.data_ptr()


@pytest.mark.parametrize(("name", "task"), ALL)
def test_sharing_works_on_meta_and_fake_tensors(loaded, name, task):
    base = loaded(name, task).model
    meta = copy.deepcopy(base).to("meta")
    assert storages(share(meta)) == storages(meta)
    mode = FakeTensorMode()
    fake = faked(base, mode)
    with mode:
        twin = share(fake)
        assert storages(twin) == storages(fake)
        for parameter in twin.parameters():
            parameter.requires_grad_(True)
        own(twin, storages(fake))
        assert not {storage(parameter) for parameter in twin.parameters()} & storages(fake)
