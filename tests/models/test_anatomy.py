from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fedge.errors import MissingError
from fedge.models import lora
from fedge.models.anatomy import anatomy, truncate
from fedge.models.load import MINILM
from fedge.models.pooled import PooledClassifier
from fedge.models.share import share
from tests.models.conftest import NANOS, inputs_for
from tests.models.test_share import faked

ALL = [*NANOS, (MINILM, "text-classification")]
TOKENS = {
    "input_ids": torch.tensor([[5, 6, 7, 8], [9, 10, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
}
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}
DISTIL = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": 40}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    family = name.split("For")[0].removesuffix("Model")
    options = {"num_labels": 3, "pad_token_id": 1, **(DISTIL if family == "DistilBert" else SMALL)}
    config = getattr(transformers, f"{family}Config")(**options)
    return getattr(transformers, name)(config).eval()


@pytest.mark.parametrize(("name", "task"), ALL)
def test_the_parts_make_up_the_whole(loaded, name, task):
    found = loaded(name, task)
    inputs = inputs_for(found)
    with torch.no_grad():
        assert torch.equal(anatomy(found.model).forward(inputs), found.model(**inputs).logits)


@pytest.mark.parametrize(
    "name",
    [
        "RobertaForSequenceClassification",
        "RobertaForMaskedLM",
        "DistilBertForSequenceClassification",
        "DistilBertForMaskedLM",
        "MPNetForSequenceClassification",
        "LlamaForCausalLM",
    ],
)
def test_the_parts_of_other_families_make_up_the_whole(name):
    model = built(name)
    with torch.no_grad():
        assert torch.allclose(anatomy(model).forward(TOKENS), model(**TOKENS).logits, atol=1e-6)
    assert anatomy(model).depth == 3
    assert anatomy(model).hidden == 16


@pytest.mark.parametrize("name", ["BertModel", "DistilBertModel", "MPNetModel", "RobertaModel"])
def test_bare_and_pooled_encoders(name):
    model = built(name)
    with torch.no_grad():
        assert torch.allclose(anatomy(model).forward(TOKENS), model(**TOKENS).last_hidden_state, atol=1e-6)
        for pooling in ("mean", "cls"):
            pooled = PooledClassifier(model, 3, pooling=pooling).eval()
            assert torch.allclose(anatomy(pooled).forward(TOKENS), pooled(**TOKENS).logits, atol=1e-6)
            assert anatomy(pooled).head_prefixes == ("classifier.",)


@pytest.mark.parametrize(("name", "task"), ALL)
def test_prefixes_name_every_tensor_of_a_block_and_of_the_head(loaded, name, task):
    model = loaded(name, task).model
    parts = anatomy(model)
    named = dict(model.named_parameters())
    for prefix, layer in zip(parts.layer_prefixes, parts.layers, strict=True):
        assert {id(p) for n, p in named.items() if n.startswith(prefix)} == {id(p) for p in layer.parameters()}
    expected = {
        "vit-nano": ("classifier.",),
        "gpt-nano": ("lm_head.",),
        MINILM: ("classifier.",),
        "bert-nano": ("cls.",) if task == "masked-lm" else ("bert.pooler.", "classifier."),
    }
    assert parts.head_prefixes == expected[name]


@pytest.mark.parametrize(("name", "task"), ALL)
def test_truncated_models_share_memory_and_leave_the_original_whole(loaded, name, task):
    found = loaded(name, task)
    inputs = inputs_for(found)
    short = truncate(found.model, 2)
    assert anatomy(short).depth == short.config.num_hidden_layers == 2
    assert anatomy(found.model).depth > 2
    parts = anatomy(found.model)
    with torch.no_grad():
        hidden = parts.embed(inputs)
        mask = parts.mask(inputs, hidden)
        for index in range(2):
            hidden = parts.block(index, hidden, mask)
        expected = parts.head(parts.pool(parts.finish(hidden), inputs))
        assert torch.equal(short(**inputs).logits, expected)
    assert next(short.parameters()).data_ptr() == next(found.model.parameters()).data_ptr()
    with pytest.raises(ValueError, match="can't be cut"):
        truncate(found.model, 99)


@pytest.mark.parametrize(("name", "task"), ALL)
def test_parts_work_with_adapters_and_on_fake_tensors(loaded, name, task):
    found = loaded(name, task)
    inputs = inputs_for(found)
    model = lora.inject(share(found.model), rank=2, alpha=2)
    with torch.no_grad():
        assert torch.equal(anatomy(model).forward(inputs), found.model(**inputs).logits)
    mode = FakeTensorMode()
    fake = faked(found.model, mode)
    given = {name: mode.from_tensor(column) for name, column in inputs.items()}
    with mode:
        anatomy(lora.inject(truncate(fake, 2), rank=2, alpha=2, train_rank=1)).forward(given).sum().backward()


def test_an_unknown_architecture_is_named():
    with pytest.raises(MissingError, match=r"Linear.*Bert.*ViT"):
        anatomy(nn.Linear(2, 2))
