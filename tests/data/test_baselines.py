from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fedge.core.task import Task
from fedge.data.baselines import (
    baselines,
    encoder_features,
    features_baseline,
    language_baselines,
    linear_baseline,
    majority_baseline,
)
from fedge.data.encode import Data, encode
from fedge.data.raw import Raw, Split
from fedge.data.rows import Masking, Rows
from fedge.data.source import read
from fedge.errors import ConfigError
from tests.shared_data import shared_data


def test_digits_are_nearly_linear():
    raw = read("digits", folder=Path(), seed=0)
    found = linear_baseline(raw, 0)
    assert found["accuracy"] > 0.95
    assert found["detail"].startswith("logistic regression on raw pixels, 1438 rows")
    assert found == linear_baseline(raw, 0)
    assert majority_baseline(raw)["accuracy"] < 0.12


def test_words_tell_topics_apart():
    raw = read("ag_news", folder=shared_data("ag_news").parent, seed=0)
    found = linear_baseline(raw, 0)
    assert 0.86 < found["accuracy"] < 0.90


def test_large_images_are_averaged_and_said():
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 100, 100), dtype=np.uint8)
    images[::2] //= 4
    split = Split(image=images, label=np.arange(20) % 2)
    found = linear_baseline(Raw("made", "image-classification", split, split, ("a", "b")), 0)
    assert found["accuracy"] == 1
    assert "pixels averaged 4×4, 20 rows" in found["detail"]


def test_labels_are_needed():
    split = Split(text=["a", "b"])
    with pytest.raises(ConfigError, match="no labels"):
        linear_baseline(Raw("made", "causal-lm", split, split), 0)
    blank = Split(text=["!", "?"], label=np.array([0, 1]))
    with pytest.raises(ConfigError, match="no words"):
        linear_baseline(Raw("made", "text-classification", blank, blank, ("a", "b")), 0)
    one = Split(text=["a", "b"], label=np.array([0, 0]))
    assert linear_baseline(Raw("made", "text-classification", one, one, ("a",)), 0)["accuracy"] == 1


def test_features_of_a_frozen_encoder():
    data = encode(read("digits", folder=Path(), seed=0), None, Task("image-classification", 10), 0)

    def forward(batch):
        pixels = batch["pixel_values"].flatten(1)
        # a feature that never varies and one that varies by rounding alone
        return torch.cat([pixels, torch.ones(len(pixels), 1), 1e-12 * pixels[:, :1]], dim=1)

    train = encoder_features(data.train, forward, 256, cap=1000)
    test = encoder_features(data.test, forward, 100)
    assert train[0].shape == (1000, 66)
    assert test[1].tolist() == data.test.labels.tolist()
    found = features_baseline(*train, *test)
    assert found["accuracy"] > 0.93
    assert "frozen features, 1000 rows, C = " in found["detail"]
    flat = features_baseline(np.ones((9, 2)), np.arange(9) // 6, np.ones((4, 2)), np.array([0, 0, 0, 1]))
    assert flat["accuracy"] == 0.75


def made(kind: str, train: list[list[int]], test: list[list[int]], vocabulary: int) -> Data:
    masking = Masking(vocabulary - 1, vocabulary, (vocabulary - 1,)) if kind == "masked-lm" else None
    rows = [Rows({"input_ids": torch.tensor(ids, dtype=torch.int32)}, kind, masking=masking) for ids in (train, test)]
    return Data(rows[0], rows[1], None, Task(kind, vocabulary), None, None)


def test_unigram_and_bigram_by_hand():
    data = made("causal-lm", [[0, 1, 0, 1]], [[0, 1, 1]], 3)
    unigram, bigram = language_baselines(data)
    # two of each token and one of each added: 3/7, 3/7, 1/7
    assert unigram["loss"] == pytest.approx(-math.log(3 / 7))
    # after 0 came 1 twice: trust 2/3; after 1 came 0 once: trust 1/2
    first = 2 / 3 * 1 + 1 / 3 * 3 / 7
    second = 1 / 2 * 0 + 1 / 2 * 3 / 7
    assert bigram["loss"] == pytest.approx(-(math.log(first) + math.log(second)) / 2)
    assert bigram["accuracy"] == 0.5
    assert bigram["perplexity"] == pytest.approx(math.exp(bigram["loss"]))


def test_a_bigram_is_a_distribution():
    train = np.random.default_rng(0).integers(0, 6, (20, 8)).tolist()
    total = 0.0
    for follower in range(7):
        _, bigram = language_baselines(made("causal-lm", train, [[2, follower]], 7))
        total += math.exp(-bigram["loss"])
    assert total == pytest.approx(1)


def test_masked_positions_are_judged_by_frequency():
    data = made("masked-lm", [[0, 0, 0, 1]] * 50, [[0, 0, 0, 1]] * 200, 3)
    (unigram,) = language_baselines(data)
    assert 0.6 < unigram["accuracy"] < 0.9
    assert unigram["loss"] < math.log(3)


def test_all_that_go_with_the_task():
    raw = read("digits", folder=Path(), rows=200, seed=0)
    data = encode(raw, None, Task("image-classification", 10), 0)
    assert [found["name"] for found in baselines(raw, data, 0)] == ["majority", "linear"]
    words = made("causal-lm", [[0, 1, 0, 1]], [[0, 1, 1]], 3)
    assert [found["name"] for found in baselines(raw, words, 0)] == ["unigram", "bigram"]
