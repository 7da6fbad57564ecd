from __future__ import annotations

import pytest
import torch

from fedge.errors import MethodError
from fedge.models import lora, names
from fedge.models.share import own, share, storages


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("bert.pooler.dense.weight", "bert.pooler.dense.weight"),
        ("h.0.attn.c_attn.base_layer.weight", "h.0.attn.c_attn.weight"),
        ("h.0.attn.c_attn.lora_A.default.weight", "base_model.model.h.0.attn.c_attn.lora_A.weight"),
        ("h.0.attn.c_attn.lora_B.rest.weight", "base_model.model.h.0.attn.c_attn.lora_B.weight"),
        ("classifier.modules_to_save.default.weight", "classifier.weight"),
        ("default.rest.weight", "default.rest.weight"),
    ],
)
def test_canonical(inside, outside):
    assert names.canonical(inside) == outside


def test_names_of_a_plain_model_are_its_state_dict_names_with_ties_once(loaded):
    model = loaded("gpt-nano", "causal-lm").model
    assert set(names.tensors(model)) == set(model.state_dict()) - {"lm_head.weight"}
    assert names.trainable(model) == {}


def test_load_copies_by_name_and_refuses_before_it_writes(loaded):
    base = loaded("vit-nano", "image-classification").model
    model = own(share(base).requires_grad_(True), storages(base))
    new = torch.full_like(base.classifier.bias, 7.0)
    names.load(model, {"classifier.bias": new})
    assert torch.equal(names.tensors(model, ["classifier.bias"])["classifier.bias"], new)
    with pytest.raises(MethodError, match=r"no tensor 'classifier.bia'.*classifier.bias"):
        names.load(model, {"classifier.bias": new * 0, "classifier.bia": new})
    with pytest.raises(MethodError, match=r"'classifier.bias' has shape \[3\]"):
        names.load(model, {"classifier.bias": torch.zeros(3)})
    assert torch.equal(model.classifier.bias, new)


def test_an_adapter_in_two_pieces_is_one_tensor_outside(loaded):
    base = loaded("vit-nano", "image-classification").model
    model = lora.inject(share(base), rank=4, alpha=4, train_rank=1)
    name = "base_model.model.vit.layers.0.attention.q_proj.lora_B.weight"
    whole = torch.arange(64.0 * 4).reshape(64, 4)
    names.load(model, {name: whole})
    assert names.trainable(model)[name].shape == (64, 1)
    assert torch.equal(names.tensors(model)[name], whole)
    names.load(model, {name: torch.zeros(64, 1)})
    assert torch.equal(names.tensors(model)[name][:, 1:], whole[:, 1:])
    assert not names.tensors(model)[name][:, 0].any()
    with pytest.raises(MethodError, match="shape"):
        names.load(model, {name: torch.zeros(64, 3)})
    assert not any("base_layer" in name or "default" in name for name in names.tensors(model))
