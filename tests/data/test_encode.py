from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedge.core.rng import generator
from fedge.core.task import IGNORE, Task
from fedge.data import store
from fedge.data.encode import Data, encode, split_public
from fedge.data.raw import Raw, Split
from fedge.data.rows import Rows
from fedge.errors import ConfigError, MissingError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
PAD, CLS, SEP, ONE = 0, 2, 3, 5


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[SEP]",
    )


def texts(*, client: bool = False) -> Raw:
    lines = ["one two", "three", "four five six seven eight nine ten", "one", "two two", "six seven"]
    keys = ["a", "b", "a", "a", "b", "b"] if client else None
    train = Split(text=lines, label=np.array([0, 1, 0, 1, 0, 1]), client=keys)
    test = Split(text=["five six seven eight", "two"], label=np.array([1, 0]), client=keys and keys[:2])
    return Raw("made", "text-classification", train, test, ("no", "yes"))


def pictures(shape=(1, 4, 4), kind=np.uint8) -> Raw:
    values = np.arange(6 * np.prod(shape)).reshape(6, *shape) % 256
    split = Split(image=values.astype(kind), label=np.arange(6) % 3)
    return Raw("made", "image-classification", split, split.take(np.arange(2)), ("a", "b", "c"))


def first(rows: Rows) -> dict[str, torch.Tensor]:
    return dict(next(rows.chunks(len(rows))))


def test_texts_are_padded_and_cut_to_one_length(tokenizer):
    data = encode(texts(), tokenizer, Task("text-classification", 2), 5)
    batch = first(data.train)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"][0].tolist() == [CLS, ONE, ONE + 1, SEP, PAD]
    assert batch["input_ids"][2].tolist() == [CLS, ONE + 3, ONE + 4, ONE + 5, SEP]
    assert batch["attention_mask"].sum(1).tolist() == [4, 3, 5, 3, 4, 4]
    assert data.train.columns["input_ids"].dtype == torch.int32
    assert data.labels.tolist() == batch["labels"].tolist() == [0, 1, 0, 1, 0, 1]
    assert (data.names, data.sha256) == (("no", "yes"), texts().sha256)


def test_only_what_the_model_takes_is_kept(tokenizer):
    task = Task("text-classification", 2)
    assert set(encode(texts(), tokenizer, task, 5, ["input_ids"]).train.columns) == {"input_ids", "labels"}
    named = ["input_ids", "attention_mask", "token_type_ids"]
    assert set(encode(texts(), tokenizer, task, 5, named).train.columns) == {*named, "labels"}


def test_masked_rows_keep_the_labels_for_the_partition(tokenizer):
    data = encode(texts(client=True), tokenizer, Task("masked-lm", len(tokenizer)), 6)
    assert data.train.labels is None
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.keys == ["a", "b", "a", "a", "b", "b"]
    assert ((first(data.train)["labels"] != IGNORE).sum(1) >= 1).all()


def test_windows_join_the_texts_of_a_client(tokenizer):
    data = encode(texts(client=True), tokenizer, Task("causal-lm", len(tokenizer)), 4)
    ids = first(data.train)["input_ids"]
    assert data.keys == ["a", "a", "a", "b", "b"]
    one, two, four = ONE, ONE + 1, ONE + 3
    stream = [one, two, SEP, *range(four, four + 7), SEP, one, SEP]
    assert ids[:3].flatten().tolist() == stream[:12]
    assert data.labels is None
    whole = encode(texts(), tokenizer, Task("causal-lm", len(tokenizer)), 4)
    assert (len(whole.train), whole.keys) == (5, None)
    with pytest.raises(ConfigError, match="do not fill one window of 99 tokens"):
        encode(texts(), tokenizer, Task("causal-lm", len(tokenizer)), 99)


def test_images_stay_compact_and_are_normalised_in_the_batch():
    raw = pictures()
    data = encode(raw, None, Task("image-classification", 3), 0)
    assert data.train.columns["pixel_values"].dtype == torch.uint8
    torch.testing.assert_close(first(data.train)["pixel_values"], torch.from_numpy(raw.train.image) / 255)
    processor = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.25] * 3, size={"height": 8, "width": 6})
    pixels = first(encode(raw, processor, Task("image-classification", 3), 0).train)["pixel_values"]
    assert pixels.shape == (6, 3, 8, 6)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert pixels.min() >= -2
    plain = SimpleNamespace(image_mean=[0.5], image_std=[0.5], do_normalize=False, size={"shortest_edge": 4})
    torch.testing.assert_close(
        first(encode(raw, plain, Task("image-classification", 3), 0).train)["pixel_values"],
        torch.from_numpy(raw.train.image) / 255,
    )


@pytest.mark.parametrize(("own", "wanted"), [(1, 3), (3, 1), (4, 3), (4, 1), (3, 3)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_channels_and_sizes_are_those_of_the_model(own, wanted, kind):
    data = encode(pictures((own, 4, 4), kind), (wanted, 8), Task("image-classification", 3), 0, ["x"])
    assert data.train.columns["x"].shape == (6, wanted, 8, 8)
    assert data.train.columns["x"].dtype == (torch.uint8 if kind is np.uint8 else torch.float32)


def test_white_stays_white_in_grey():
    raw = pictures((3, 4, 4))
    raw.train.image[:] = 255
    data = encode(raw, (1, 4), Task("image-classification", 3), 0)
    assert (data.train.columns["pixel_values"] == 255).all()


def test_what_does_not_go_together_is_said(tokenizer):
    bare = Raw("made", "causal-lm", Split(text=["a"]), Split(text=["a"]))
    cases = [
        (pictures(), tokenizer, Task("masked-lm", 9), "needs texts, and made has images"),
        (texts(), None, Task("image-classification", 2), "needs images, and made has texts"),
        (texts(), None, Task("masked-lm", 9), "a model with a tokenizer"),
        (texts(), tokenizer, Task("text-classification", 1), "2 classes and the model 1"),
        (bare, tokenizer, Task("text-classification", 2), "needs labels"),
        (texts(), _Maskless(), Task("masked-lm", 9), "has none"),
        (pictures((3, 4, 4)), (5, 4), Task("image-classification", 3), "cannot be given to a model that takes 5"),
    ]
    for raw, preprocessor, task, says in cases:
        with pytest.raises(ConfigError, match=says):
            encode(raw, preprocessor, task, 4)
    with pytest.raises(ConfigError, match="length of at least 2"):
        encode(texts(), tokenizer, Task("masked-lm", 9), 1)


class _Maskless:
    """A tokenizer without a mask token."""

    mask_token_id, pad_token_id, eos_token_id = None, 0, None

    def __call__(self, texts, **_):
        return {"input_ids": [[1] for _ in texts]}


def test_public_rows_are_nobody_elses():
    raw = pictures()
    data = split_public(encode(raw, None, Task("image-classification", 3), 0), 3, seed=0)
    assert data.public is not None
    assert sorted(data.public.labels.tolist()) == [0, 1, 2]
    shown = torch.cat([first(rows)["pixel_values"].flatten(1)[:, 0] for rows in (data.train, data.public)])
    assert len(set(shown.tolist())) == 6
    assert data.labels.tolist() == data.train.labels.tolist()
    with pytest.raises(ConfigError, match="6 public rows cannot be taken from 6"):
        split_public(encode(raw, None, Task("image-classification", 3), 0), 6, seed=0)
    assert split_public(data, 0, seed=0) is data


def same(one: Data, other: Data) -> bool:
    pairs = [(one.train, other.train), (one.test, other.test)]
    if one.public is not None:
        pairs.append((one.public, other.public))
    return all(
        torch.equal(a, b)
        for left, right in pairs
        for a, b in zip(
            next(left.batches(3, generator(0))).values(), next(right.batches(3, generator(0))).values(), strict=True
        )
    )


@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm", "text-classification", "image-classification"])
def test_what_is_saved_comes_back(tmp_path, tokenizer, kind):
    if kind == "image-classification":
        processor = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.25] * 3, size=4)
        data = encode(pictures(), processor, Task(kind, 3), 0)
    else:
        data = encode(texts(client=True), tokenizer, Task(kind, len(tokenizer)), 4)
    data = split_public(data, 2, seed=0)
    store.save(data, tmp_path / "deep" / "data")
    found = store.open(tmp_path / "deep" / "data")
    assert same(data, found)
    assert (found.task, found.keys, found.names, found.sha256) == (data.task, data.keys, data.names, data.sha256)
    assert (found.labels is None) == (data.labels is None)
    store.save(found, tmp_path / "deep" / "data")
    assert same(data, store.open(tmp_path / "deep" / "data", warm=False))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["data"]


def test_a_write_to_opened_data_never_reaches_the_file(tmp_path):
    data = encode(pictures(), None, Task("image-classification", 3), 0)
    store.save(data, tmp_path / "data")
    store.open(tmp_path / "data").train.columns["pixel_values"].zero_()
    assert same(data, store.open(tmp_path / "data"))


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    data = encode(pictures(), None, Task("image-classification", 3), 0)
    monkeypatch.setattr(json, "dumps", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.save(data, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_damage_is_said(tmp_path):
    with pytest.raises(MissingError, match="no prepared data"):
        store.open(tmp_path)
    store.save(encode(pictures(), None, Task("image-classification", 3), 0), tmp_path / "data")
    column = tmp_path / "data" / "train.pixel_values.npy"
    column.write_bytes(column.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="damaged"):
        store.open(tmp_path / "data")
    column.unlink()
    with pytest.raises(MissingError, match="absent"):
        store.open(tmp_path / "data")
    (tmp_path / "data" / "data.json").write_text('{"version": 99}')
    with pytest.raises(ConfigError, match="another version"):
        store.open(tmp_path / "data")
