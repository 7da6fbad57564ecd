from __future__ import annotations

import pytest
import torch

from fedge.errors import MethodError
from fedge.models import lora, names
from fedge.models.load import MINILM
from fedge.models.share import share, storages
from tests.models.conftest import NANOS, inputs_for

ALL = [*NANOS, (MINILM, "text-classification")]
CASES = [(None, None), (1, None), (3, {1}), (None, {0, 1})]


def injected(base, train_rank=None, layers=None, **more):
    torch.manual_seed(11)
    return lora.inject(share(base), rank=4, alpha=8, train_rank=train_rank, layers=layers, **more)


def adapters(model):
    return {name: tensor for name, tensor in names.tensors(model).items() if "lora_" in name}


@pytest.mark.parametrize(("name", "task"), ALL)
def test_injection_changes_nothing_and_starts_the_same_whatever_is_trained(loaded, name, task):
    found = loaded(name, task)
    inputs = inputs_for(found)
    start = None
    for train_rank, layers in CASES:
        model = injected(found.model, train_rank, layers)
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, found.model(**inputs).logits)
        now = adapters(model)
        start = start or now
        assert list(now) == list(start)
        assert all(torch.equal(now[key], start[key]) for key in now)
        trained = names.trainable(model)
        rank = train_rank or 4
        assert {p.shape[0] for key, p in trained.items() if "lora_A" in key} == {rank}
        assert {p.shape[1] for key, p in trained.items() if "lora_B" in key} == {rank}
        per_layer = len(start) // len(lora.anatomy(found.model).layers)
        assert len(trained) == per_layer * (len(layers) if layers else len(lora.anatomy(found.model).layers))


@pytest.mark.parametrize(("name", "task"), ALL)
def test_the_function_is_the_whole_adapters_and_merging_keeps_it(loaded, name, task):
    found = loaded(name, task)
    inputs = inputs_for(found)
    models = [injected(found.model, *case) for case in CASES]
    draw = torch.Generator().manual_seed(2)
    tree = {key: torch.randn(t.shape, generator=draw) * 0.05 for key, t in adapters(models[0]).items()}
    with torch.no_grad():
        for model in models:
            names.load(model, tree)
        expected = models[0](**inputs).logits
        assert not torch.allclose(expected, found.model(**inputs).logits, atol=1e-3)
        for model in models:
            assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)  # the order of sums is the processor's
            plain = lora.merge(model)
            assert type(plain) is type(found.model)
            assert list(plain.state_dict()) == list(found.model.state_dict())
            assert torch.allclose(plain(**inputs).logits, expected, atol=2e-5)
            assert torch.equal(lora.strip(model)(**inputs).logits, found.model(**inputs).logits)
            assert lora.factors(model)  # the adapters are still there


@pytest.mark.parametrize(("name", "task"), NANOS)
def test_gradients_of_the_first_slots_are_the_whole_adapters(loaded, name, task):
    found = loaded(name, task)
    inputs = inputs_for(found)
    whole, part = injected(found.model), injected(found.model, train_rank=3)
    tree = {key: torch.full(tensor.shape, 0.02) for key, tensor in adapters(whole).items()}
    gradients = []
    for model in (whole, part):
        names.load(model, tree)
        model(**inputs).logits.square().mean().backward()
        gradients.append({key: parameter.grad for key, parameter in names.trainable(model).items()})
    for key, gradient in gradients[1].items():
        expected = gradients[0][key][:3] if "lora_A" in key else gradients[0][key][:, :3]
        assert torch.allclose(gradient, expected, atol=1e-6)


def test_frozen_weights_stay_shared(loaded):
    base = loaded("vit-nano", "image-classification").model
    model = injected(base)
    assert storages(base) < storages(model)
    assert not any(
        storages(base) & {parameter.untyped_storage()._cdata} for parameter in names.trainable(model).values()
    )
    assert storages(lora.strip(model)) == storages(base)


def test_what_cannot_be_adapted_is_said(loaded):
    base = loaded("vit-nano", "image-classification").model
    with pytest.raises(MethodError, match="no linear module"):
        lora.inject(share(base), rank=2, alpha=2, targets=["nothing"])
    with pytest.raises(MethodError, match="rank slots"):
        lora.inject(share(base), rank=2, alpha=2, train_rank=3)
    with pytest.raises(MethodError, match="not all there"):
        lora.inject(share(base), rank=2, alpha=2, layers={7})


def test_targets_outside_the_blocks_are_left_alone(loaded):
    base = loaded("bert-nano", "text-classification").model
    model = lora.inject(share(base), rank=2, alpha=2, targets=["dense"])
    assert not any("pooler" in name for name in lora.adapted(model))
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(3, 3)), torch.nn.Linear(3, 2))
    assert list(lora.adapted(lora.inject(plain, rank=1, alpha=1, targets=["0"]))) == ["0.0"]
