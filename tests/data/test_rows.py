from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.core.rng import generator
from fedge.core.task import IGNORE
from fedge.data.rows import Masking, Pixels, Rows
from fedge.errors import ConfigError


def numbered(n: int) -> Rows:
    return Rows({"pixel_values": torch.arange(n).view(n, 1, 1, 1).float(), "labels": torch.arange(n)}, "any")


def tokens(n: int = 200, length: int = 20, vocabulary: int = 100) -> Rows:
    ids = torch.randint(5, vocabulary, (n, length), generator=generator("tokens"), dtype=torch.int32)
    ids[:, 0], ids[:, -3:] = 1, 0
    masking = Masking(token=4, vocabulary=vocabulary, special=(0, 1, 2, 3, 4))
    return Rows({"input_ids": ids, "attention_mask": (ids > 0).byte()}, "masked-lm", masking=masking)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 30), size=st.integers(1, 40))
def test_batches_have_one_shape_and_show_every_row_equally_often(n, size):
    rows = numbered(n)
    per = min(size, n)
    seen = torch.cat([batch["labels"] for batch in islice(rows.batches(size, generator(0)), n)])
    assert len(seen) == n * per
    assert torch.bincount(seen, minlength=n).tolist() == [per] * n
    # every n rows in a row are one whole order
    assert all(sorted(seen[at : at + n].tolist()) == list(range(n)) for at in range(0, len(seen), n))


def test_batches_depend_on_the_generator_alone():
    one, again, other = (next(numbered(50).batches(20, generator(seed)))["labels"] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_chunks_are_all_rows_in_order():
    chunks = list(numbered(10).chunks(4))
    assert [len(chunk["labels"]) for chunk in chunks] == [4, 4, 2]
    assert torch.cat([chunk["labels"] for chunk in chunks]).tolist() == list(range(10))


def test_a_view_shares_memory_and_views_nest():
    rows = numbered(10)
    view = rows.take(np.array([8, 6, 4, 2])).take([3, 0])
    assert view.labels is not None
    assert view.labels.tolist() == [2, 8]
    assert view.columns["labels"].data_ptr() == rows.columns["labels"].data_ptr()
    assert next(view.chunks(5))["pixel_values"].flatten().tolist() == [2.0, 8.0]
    assert view.nbytes == 2 * (4 + 8)
    assert view.gather().columns["labels"].tolist() == [2, 8]
    with pytest.raises(IndexError):
        view.take([2])


def test_compact_columns_are_widened_in_the_batch_as_the_spec_says():
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    rows = Rows(
        {"pixel_values": images, "labels": torch.zeros(6, dtype=torch.int16)},
        "image-classification",
        pixels=Pixels(1 / 255, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)),
    )
    batch = next(rows.chunks(4))
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == rows.spec(4)
    expected = (images[:4, 1] / 255 - 0.4) / 0.2
    torch.testing.assert_close(batch["pixel_values"][:, 1], expected)
    assert rows.nbytes == 6 * (48 + 2)


def test_spec_of_language_rows_has_labels():
    rows = tokens(3)
    assert rows.spec(8)["labels"] == ((3, 20), torch.int64)
    batch = next(rows.batches(8, generator(0)))
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == rows.spec(8)
    assert rows.labels is None


def test_masks_cover_fifteen_percent_and_no_special_token():
    rows = tokens(2000)
    batch = next(rows.chunks(2000))
    original = rows.columns["input_ids"].long()
    chosen = batch["labels"] != IGNORE
    assert torch.equal(batch["labels"][chosen], original[chosen])
    assert not (chosen & (original < 5)).any()
    share = chosen.sum() / (original >= 5).sum()
    assert 0.14 < share < 0.17
    shown = batch["input_ids"][chosen]
    assert 0.78 < (shown == 4).float().mean() < 0.82
    assert 0.08 < (shown == original[chosen]).float().mean() < 0.13
    assert (shown >= 4).all()
    assert torch.equal(batch["input_ids"][~chosen], original[~chosen])


def test_every_row_with_a_word_has_a_masked_position():
    ids = torch.tensor([[1, 7, 2, 0], [1, 2, 0, 0]], dtype=torch.int32)
    rows = Rows({"input_ids": ids}, "masked-lm", masking=Masking(4, 10, (0, 1, 2, 3, 4)))
    for batch in islice(rows.batches(2, generator(0)), 20):
        counts = (batch["labels"] != IGNORE).sum(1)
        assert sorted(counts.tolist()) == [0, 1]


def test_masks_of_chunks_are_fixed_whatever_the_size_and_of_batches_seeded():
    rows = tokens(30)
    whole = next(rows.chunks(30))
    pieces = list(rows.chunks(7))
    for name, column in whole.items():
        assert torch.equal(column, torch.cat([piece[name] for piece in pieces]))
    one, again, other = (next(rows.batches(8, generator(seed)))["labels"] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_causal_labels_are_the_tokens():
    rows = Rows({"input_ids": torch.arange(12, dtype=torch.int32).view(3, 4)}, "causal-lm")
    batch = next(rows.chunks(3))
    assert torch.equal(batch["input_ids"], batch["labels"])
    assert batch["labels"].data_ptr() != batch["input_ids"].data_ptr()


def test_no_rows_are_no_endless_loop():
    empty = numbered(3).take([])
    assert list(empty.chunks(4)) == []
    assert empty.nbytes == 0
    with pytest.raises(ConfigError, match="no rows"):
        next(empty.batches(4, generator(0)))
    with pytest.raises(ValueError, match="lengths"):
        Rows({"a": torch.zeros(2), "b": torch.zeros(3)}, "any")
