from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch

from fedge.errors import ConfigError, MissingError
from fedge.models import place
from fedge.models.anatomy import anatomy
from fedge.models.load import MINILM, load
from fedge.models.save import save, state
from tests.models.conftest import HAS_MINILM, NANOS, inputs_for

DIGEST = """
import hashlib, torch
from fedge.models.load import load
from fedge.models.save import pack_state
for name, task in {cases!r}:
    print(hashlib.sha256(pack_state(load(name, task, classes=4, seed=3).model)).hexdigest())
"""


@pytest.mark.parametrize(("name", "task"), [*NANOS, (MINILM, "text-classification")])
def test_loaded_models_are_ready_to_share(loaded, name, task):
    found = loaded(name, task)
    assert found.task.kind == task
    assert found.source == name
    assert not found.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in found.model.parameters())
    assert "token_type_ids" not in found.input_names
    with torch.no_grad():
        assert found.model(**inputs_for(found)).logits.shape[-1] == found.task.classes
    assert isinstance(found.config, dict)


def test_the_same_bits_in_every_process(loaded):
    from fedge.models.save import pack_state

    cases = [*NANOS, *([(MINILM, "text-classification")] if HAS_MINILM else [])]
    done = subprocess.run(
        [sys.executable, "-c", DIGEST.format(cases=cases)], capture_output=True, text=True, check=True, timeout=120
    )
    here = [hashlib.sha256(pack_state(loaded(name, task).model)).hexdigest() for name, task in cases]
    assert done.stdout.split() == here
    assert done.stderr == ""
    other = load("vit-nano", None, classes=4, seed=4)
    assert hashlib.sha256(pack_state(other.model)).hexdigest() != here[0]


def test_options_change_a_bundled_models_size():
    found = load("vit-nano", None, labels=["cat", "dog"], options={"image_size": 12, "channels": 3, "layers": 2})
    assert found.model(pixel_values=torch.zeros(1, 3, 12, 12)).logits.shape == (1, 2)
    assert found.config["id2label"] == {0: "cat", 1: "dog"}
    with pytest.raises(ConfigError, match=r"no option 'layer'.*layers"):
        load("vit-nano", None, options={"layer": 2})
    with pytest.raises(ConfigError, match="can't do causal-lm"):
        load("vit-nano", "causal-lm")


@pytest.mark.parametrize(("name", "text"), [("bert-nano", "[CLS]naïve ↯[SEP]"), ("gpt-nano", "naïve ↯")])
def test_tokenizers_take_every_byte_and_travel(loaded, tmp_path, name, text):
    from transformers import AutoTokenizer

    tokenizer = load(name, None).preprocessor
    tokens = tokenizer("naïve ↯")["input_ids"]
    assert tokenizer.decode(tokens) == text
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("naïve ↯")["input_ids"] == tokens
    assert tokenizer.pad_token_id == 0


def test_a_function_of_the_users_own(tmp_path):
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "def small(width=2):\n    return nn.Linear(4, width), 'tokenizer'\n"
        "def wrong():\n    return 3\n"
    )
    found = load("my_models:small", "image-classification", classes=5, options={"width": 5}, folder=tmp_path)
    assert (found.kind, found.preprocessor, found.task.classes) == ("custom", "tokenizer", 5)
    assert found.model.weight.shape == (5, 4)
    with pytest.raises(MissingError, match="no 'big'"):
        load("my_models:big", "image-classification", folder=tmp_path)
    with pytest.raises(MissingError, match="no_such_module"):
        load("no_such_module:big", "image-classification", folder=tmp_path)
    with pytest.raises(ConfigError, match="returned int"):
        load("my_models:wrong", "image-classification", folder=tmp_path)
    with pytest.raises(ConfigError, match="needs a task"):
        load("my_models:small", None, folder=tmp_path)


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(place, "_reachable", lambda: False)
    monkeypatch.setattr(place, "_cached", lambda *_: False)
    monkeypatch.setattr(place, "_packaged", lambda: None)
    with pytest.raises(MissingError, match=r"fedge\[minilm\]"):
        load(MINILM, "text-classification")
    with pytest.raises(MissingError, match="Hub can't be reached"):
        load("some/model", "text-classification")
    with pytest.raises(MissingError, match="vit-nano"):
        load("vit-nanno", None)
    with pytest.raises(MissingError, match="does not exist"):
        load("./nothing", None, folder=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match=r"config\.json"):
        load("empty", None, folder=tmp_path)
    with pytest.raises(ConfigError, match="not one of"):
        load("vit-nano", "singing")


def test_a_folder_keeps_a_head_that_fits_and_draws_one_that_does_not(loaded, tmp_path):
    found = loaded("bert-nano", "text-classification")
    save(found.model, tmp_path / "model", found)
    same = load("model", None, classes=4, folder=tmp_path)
    assert all(torch.equal(tensor, state(found.model)[name]) for name, tensor in state(same.model).items())
    assert same.kind == "folder"
    assert same.source == str(tmp_path / "model")
    first, second = (load("model", None, classes=3, seed=1, folder=tmp_path).model for _ in range(2))
    assert first.classifier.weight.shape[0] == 3
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert torch.equal(first.bert.pooler.dense.weight, found.model.bert.pooler.dense.weight)
    other = load("model", None, classes=3, seed=2, folder=tmp_path).model
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    with pytest.raises(ConfigError, match=r"hidden_sizes.*hidden_size"):
        load("model", None, options={"hidden_sizes": 3}, folder=tmp_path)


def test_a_checkpoint_that_does_not_fit_is_refused(loaded, tmp_path):
    found = loaded("bert-nano", "text-classification")
    save(found.model, tmp_path / "model", found)
    with pytest.raises(ConfigError, match="does not fit its configuration"):
        load("model", None, options={"intermediate_size": 99}, folder=tmp_path)


def test_models_without_a_classification_head_are_pooled(loaded, tmp_path):
    for name, task in (("bert-nano", "masked-lm"), ("gpt-nano", "causal-lm")):
        found = loaded(name, task)
        save(found.model, tmp_path / name, found)
        pooled = load(f"./{name}", "text-classification", classes=5, folder=tmp_path)
        inputs = inputs_for(pooled)
        with torch.no_grad():
            logits = pooled.model(**inputs).logits
            assert logits.shape == (2, 5)
            assert torch.equal(anatomy(pooled.model).forward(inputs), logits)


@pytest.mark.slow
def test_a_model_in_the_local_hub_cache_is_found_without_a_network(loaded, tmp_path):
    found = loaded("bert-nano", "text-classification")
    cache = tmp_path / "hub" / "models--some--model"
    save(found.model, cache / "snapshots" / "0123abc", found)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abc")
    code = (
        "from fedge.models.load import load\n"
        "found = load('some/model', None, classes=4)\n"
        "print(found.kind, found.source, found.task.kind, found.config['_name_or_path'], len(found.preprocessor))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.split() == ["hub", "some/model", "text-classification", "some/model", "261"], done.stderr


def test_pooling_is_that_of_sentence_transformers(loaded):
    model = loaded(MINILM, "text-classification").model
    assert model.pooling == "mean"
    hidden = torch.randn(2, 5, 384)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    pooled = model.pool(hidden, mask)
    assert torch.allclose(pooled[0], hidden[0, :3].mean(0), atol=1e-6)
    assert torch.allclose(pooled[1], hidden[1].mean(0), atol=1e-6)


@pytest.mark.slow
def test_vit_nano_learns_digits():
    from sklearn.datasets import load_digits
    from torch.nn import functional

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    model = load("vit-nano", None, classes=10, seed=0).model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(1)
    for _ in range(250):
        rows = train[torch.randint(len(train), (32,), generator=draw)]
        functional.cross_entropy(model(pixel_values=images[rows]).logits, labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        accuracy = (model(pixel_values=images[test]).logits.argmax(-1) == labels[test]).float().mean()
    assert accuracy >= 0.9
