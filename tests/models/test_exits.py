from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fedge.errors import ConfigError
from fedge.models import lora
from fedge.models.anatomy import truncate
from fedge.models.exits import MultiExit
from fedge.models.load import MINILM, load
from fedge.models.save import save
from fedge.models.share import share, storages
from tests.models.conftest import NANOS, inputs_for
from tests.models.test_share import faked

ALL = [*NANOS, (MINILM, "text-classification")]


def wrapped(found, exits=(1, 2)):
    torch.manual_seed(4)
    return MultiExit(share(found.model), exits, found.task.classes).eval()


@pytest.mark.parametrize(("name", "task"), ALL)
def test_names_and_the_last_exit_are_the_bases(loaded, name, task):
    found = loaded(name, task)
    inputs = inputs_for(found)
    model = wrapped(found)
    extra = [key for key in model.state_dict() if key not in found.model.state_dict()]
    assert set(found.model.state_dict()) <= set(model.state_dict())
    # a language model's exits share its head
    parts = ("norm",) if found.task.generative else ("norm", "classifier")
    assert extra == [f"exits.{at}.{part}.{kind}" for at in (1, 2) for part in parts for kind in ("weight", "bias")
                     if f"exits.{at}.{part}.{kind}" in extra]  # fmt: skip
    assert {key.split(".")[2] for key in extra} == set(parts)
    with torch.no_grad():
        logits = model(**inputs)
        assert torch.equal(logits[-1], found.model(**inputs).logits)
        assert [one.shape for one in logits] == [logits[-1].shape] * 3


@pytest.mark.parametrize(("name", "task"), ALL)
def test_shallow_exits_are_bit_equal_whether_or_not_deeper_blocks_exist(loaded, name, task):
    found = loaded(name, task)
    inputs = inputs_for(found)
    model = wrapped(found)
    with torch.no_grad():
        logits = model(**inputs)
        for depth, count in ((1, 1), (2, 2)):
            short = model.cut(depth)
            assert len(short.parts.layers) == depth
            for got in (short(**inputs), model(depth=depth, **inputs)):
                assert len(got) == count
                assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, logits, strict=False))
            assert storages(short) < storages(model)
            assert set(short.state_dict()) < set(model.state_dict())
        assert len(model(**inputs)) == 3


def test_an_exits_start_does_not_depend_on_the_others_or_on_how_deep_the_model_is(loaded):
    found = loaded("vit-nano", "image-classification")
    one, two = wrapped(found, (2,)), wrapped(found, (1, 2))
    assert torch.equal(one.exits["2"].classifier.weight, two.exits["2"].classifier.weight)
    assert not torch.equal(two.exits["1"].classifier.weight, two.exits["2"].classifier.weight)
    torch.manual_seed(4)
    shallow = MultiExit(truncate(found.model, 2), (1,), 4)
    assert torch.equal(shallow.exits["1"].classifier.weight, two.exits["1"].classifier.weight)


def test_adapters_go_into_a_multi_exit_model(loaded):
    found = loaded("vit-nano", "image-classification")
    model = lora.inject(wrapped(found), rank=2, alpha=2)
    sum(one.sum() for one in model(**inputs_for(found))).backward()
    twin = lora.merge(model)
    with torch.no_grad():
        assert torch.equal(twin(**inputs_for(found))[0], model(**inputs_for(found))[0])


def test_training_mode_reaches_the_base_and_bad_points_are_refused(loaded):
    found = loaded("vit-nano", "image-classification")
    model = wrapped(found)
    assert model.train().base.training
    assert not model.eval().base.training
    for points in ([0], [2, 1], [9]):
        with pytest.raises(ConfigError, match="ascending"):
            MultiExit(share(found.model), points, 4)
    with pytest.raises(ConfigError, match="no exit"):
        model.cut(3)
    with pytest.raises(ConfigError, match="no exit"):
        model(depth=0, **inputs_for(found))


@pytest.mark.parametrize(("name", "task"), [NANOS[0], NANOS[3], (MINILM, "text-classification")])
@pytest.mark.parametrize("depth", [None, 2])
def test_a_saved_multi_exit_model_loads_as_it_was(loaded, tmp_path, name, task, depth):
    found = loaded(name, task)
    inputs = inputs_for(found)
    model = wrapped(found) if depth is None else wrapped(found).cut(depth)
    save(model, tmp_path / "model", found)
    again = load(str(tmp_path / "model"), task)
    assert list(again.model.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        for mine, theirs in zip(again.model(**inputs), model(**inputs), strict=True):
            assert torch.equal(mine, theirs)
    assert again.input_names == found.input_names


@pytest.mark.parametrize(("name", "task"), ALL)
def test_exits_can_be_traced(loaded, name, task):
    found = loaded(name, task)
    mode = FakeTensorMode()
    fake = faked(found.model, mode)
    given = {key: mode.from_tensor(column) for key, column in inputs_for(found).items()}
    with mode:
        model = MultiExit(fake, (1, 2), found.task.classes).cut(2)
        logits = model.requires_grad_(True)(**given)
        sum(one.sum() for one in logits).backward()
    assert [one.shape[-1] for one in logits] == [found.task.classes] * 2
    assert all(isinstance(one, FakeTensor) for one in logits)
    own = [parameter for name, parameter in model.named_parameters() if name.startswith("exits.")]
    assert own
    assert all(parameter.grad is not None for parameter in own)
    with torch.device("meta"):
        empty = MultiExit(share(found.model).to("meta"), (1,), 4)
    assert all(parameter.is_meta for parameter in empty.parameters())
