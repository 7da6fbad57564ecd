from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.data.partition import (
    FEWEST,
    apportion,
    hold_out,
    label_mix,
    mix_weights,
    partition,
    sample,
    weighted_accuracy,
)
from fedge.errors import ConfigError

VALUES = {
    "iid": st.none(),
    "by": st.none(),
    "dirichlet": st.floats(1e-3, 1e3),
    "shards": st.integers(1, 3),
}


@st.composite
def cases(draw):
    clients = draw(st.integers(1, 12))
    kind = draw(st.sampled_from(sorted(VALUES)))
    value = draw(VALUES[kind])
    n = draw(st.integers(clients * (value if kind == "shards" else 1), 150))
    labels = np.array(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)), dtype=np.int64)
    keys = [f"k{number}" for number in draw(st.lists(st.integers(0, 15), min_size=n, max_size=n))]
    return labels, keys, clients, kind, value, draw(st.integers(0, 5)), n


@settings(max_examples=150, deadline=None)
@given(cases())
def test_every_row_has_one_owner_and_nobody_is_empty(case):
    parts = partition(*case)
    clients, n = case[2], case[6]
    assert len(parts) == clients
    assert all(len(part) for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert all(np.array_equal(one, other) for one, other in zip(parts, partition(*case), strict=True))
    if case[3] == "iid":
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if case[3] == "dirichlet":
        assert min(map(len, parts)) >= max(1, min(FEWEST, n // (2 * clients)))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_key_is_split_only_where_devices_outnumber_keys(case):
    labels, keys, clients, _, _, seed, n = case
    parts = partition(labels, keys, clients, "by", None, seed, n)
    owners = [{keys[row] for row in part} for part in parts]
    if len(set(keys)) >= clients:
        assert sum(map(len, owners)) == len(set(keys))
    else:
        assert all(len(owner) == 1 for owner in owners)


def test_another_seed_divides_otherwise():
    one, other = (partition(None, None, 3, "iid", None, seed, 60) for seed in (0, 1))
    assert not np.array_equal(one[0], other[0])


def test_a_small_concentration_skews_labels_more_than_a_large_one():
    labels = np.arange(2000) % 10

    def skew(value):
        parts = partition(labels, None, 10, "dirichlet", value, 0, 2000)
        return np.mean([label_mix(labels[part], 10).max() for part in parts])

    assert skew(100.0) < 0.2 < 0.4 < skew(0.05)


def test_shards_give_a_device_few_labels():
    labels = np.arange(1000) % 10
    parts = partition(labels, None, 10, "shards", 2, 0, 1000)
    assert max(len(np.unique(labels[part])) for part in parts) <= 2
    assert {len(part) for part in parts} == {100}


def test_big_keys_are_spread_first():
    keys = ["a"] * 10 + ["b"] * 6 + ["c"] * 5 + ["d"] * 1
    parts = partition(None, keys, 2, "by", None, 0, len(keys))
    assert sorted(map(len, parts)) == [11, 11]
    parts = partition(None, keys, 6, "by", None, 0, len(keys))
    assert sorted(map(len, parts)) == [1, 3, 3, 5, 5, 5]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((None, None, 5, "iid", None, 0, 4), "4 rows cannot be divided among 5 devices"),
        ((None, None, 0, "iid", None, 0, 4), "at least one device"),
        ((None, None, 2, "dirichlet", 0.3, 0, 4), "needs labels"),
        ((np.zeros(4, int), None, 2, "dirichlet", 0.0, 0, 4), "above 0"),
        ((np.zeros(4, int), None, 2, "dirichlet", None, 0, 4), "above 0"),
        ((np.zeros(4, int), None, 2, "shards", 1.5, 0, 4), "whole number"),
        ((np.zeros(4, int), None, 2, "shards", 3, 0, 4), "4 rows cannot be cut into 3 shards for each of 2"),
        ((None, None, 2, "by", None, 0, 4), "needs a column of keys"),
        ((None, None, 2, "dirichelt", None, 0, 4), "unknown partition"),
    ],
)
def test_what_cannot_be_divided_is_said(arguments, says):
    with pytest.raises(ConfigError, match=says):
        partition(*arguments)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(sum), st.integers(0, 500))
def test_apportioned_numbers_sum_to_the_total(shares, total):
    counts = apportion(np.array(shares), total)
    assert counts.sum() == total
    assert (counts >= 0).all()
    assert np.abs(counts - np.array(shares) / sum(shares) * total).max() <= 1 + 1e-6


def test_a_sample_keeps_the_shares_of_the_labels_and_every_label():
    labels = np.array([0] * 80 + [1] * 19 + [2])
    kept = labels[sample(labels, 100, 20, 0)]
    assert np.bincount(kept).tolist() == [15, 4, 1]
    assert len(sample(None, 100, 500, 0)) == 100


def test_a_share_held_out_is_disjoint_and_leaves_something():
    rows = np.array([5, 7, 9, 11])
    train, test = hold_out(rows, np.zeros(12, int), 0.01, 0, "phone-00")
    assert len(train) == 3
    assert sorted([*train, *test]) == rows.tolist()
    with pytest.raises(ConfigError, match="phone-00 holds 1 row"):
        hold_out(rows[:1], None, 0.5, 0, "phone-00")


def test_weights_give_the_test_split_the_mix_of_a_device():
    test_labels = np.array([0, 0, 0, 1, 2])
    mix = label_mix(np.array([0, 1, 1, 1]), 3)
    weights = mix_weights(test_labels, mix)
    assert weights.sum() == pytest.approx(1)
    assert weights[test_labels == 1].sum() == pytest.approx(0.75)
    assert weighted_accuracy(test_labels == 1, weights) == pytest.approx(0.75)
    # a class that the test split lacks is left out, no class in common gives equal weights
    assert mix_weights(np.array([0, 1]), np.array([0.2, 0.2, 0.6])).tolist() == [0.5, 0.5]
    assert mix_weights(np.array([0, 0]), np.array([0.0, 1.0])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("kind", "value"), [("iid", None), ("dirichlet", 0.5)])
def test_labels_stay_with_the_devices_that_are_their_home(kind, value):
    # enough of each that nobody needs rows from elsewhere
    labels = np.repeat(np.arange(5), 400)
    homes = {0: [0, 1], 1: [0, 1], 2: [2, 3, 4], 3: [2, 4]}
    parts = partition(labels, None, 5, kind, value, 3, len(labels), homes)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for label, home in homes.items():
        holders = {device for device, part in enumerate(parts) if (labels[part] == label).any()}
        assert holders <= set(home), label
    assert len([part for part in parts if (labels[part] == 4).any()]) >= 2, "a label without a home is everyone's"
    if kind == "iid":
        assert [int((labels[parts[device]] == 2).sum()) for device in (2, 3, 4)] == pytest.approx(
            [133, 133, 133], abs=1
        )
    with pytest.raises(ConfigError, match="groups go with iid and dirichlet"):
        partition(labels, None, 5, "shards", 2, 3, len(labels), homes)


@pytest.mark.parametrize(("kind", "value"), [("iid", None), ("dirichlet", 0.5)])
def test_what_does_not_stay_at_home_is_dealt_evenly_to_all(kind, value):
    labels = np.repeat(np.arange(5), 400)
    homes = {0: [0, 1], 1: [2, 3]}
    parts = partition(labels, None, 5, kind, value, 3, len(labels), homes, 0.75)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for label, home in homes.items():
        held = np.array([int((labels[part] == label).sum()) for part in parts])
        assert held[home].sum() == pytest.approx(400 * (0.75 + 0.25 * len(home) / 5), abs=2)
        away = np.delete(held, home)
        assert away.tolist() == pytest.approx([400 * 0.25 / 5] * len(away), abs=1)
    for share in (0.0, 1.1):
        with pytest.raises(ConfigError, match="stay at home"):
            partition(labels, None, 5, kind, value, 3, len(labels), homes, share)
