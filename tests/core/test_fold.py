"""Folding against the mean written out one coordinate at a time."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.core.fold import Coverage, weighted_mean
from fedge.errors import MethodError

SHAPES = {"a": (4, 3), "b": (5,), "c": ()}


def oracle(replies, name):
    """Means by coordinate, None where nobody covers it."""
    found = {}
    for at in product(*(range(size) for size in SHAPES[name])):
        total = weights = 0.0
        for weight, tree in replies:
            tensor = tree.get(name)
            if tensor is not None and all(i < size for i, size in zip(at, tensor.shape, strict=True)):
                total += weight * float(tensor[at])
                weights += weight
        found[at] = total / weights if weights else None
    return found


@st.composite
def replies(draw):
    found = []
    for number in range(draw(st.integers(1, 4))):
        tree = {}
        for name in draw(st.sets(st.sampled_from(list(SHAPES)))):
            shape = [draw(st.integers(0 if name == "a" else 1, size)) for size in SHAPES[name]]
            tree[name] = torch.randn(shape, generator=torch.Generator().manual_seed(number))
        found.append((float(draw(st.integers(1, 50))), tree))
    return found


@settings(max_examples=150, deadline=None)
@given(replies())
def test_coverage_is_the_mean_over_those_who_sent_a_coordinate(found):
    fold = Coverage({name: torch.Size(shape) for name, shape in SHAPES.items()})
    for weight, tree in found:
        fold.add(weight, tree)
    means, covered = fold.mean()
    for name in SHAPES:
        expected = oracle(found, name)
        if name not in means:
            assert all(value is None for value in expected.values())
            continue
        for at, value in expected.items():
            assert bool(covered[name][at] if name in covered else True) == (value is not None)
            assert float(means[name][at]) == pytest.approx(value or 0.0, abs=1e-6)


def test_one_coordinate_by_hand():
    fold = Coverage({"w": torch.Size([3])})
    fold.add(10, {"w": torch.tensor([1.0, 2.0])})
    fold.add(30, {"w": torch.tensor([5.0])})
    means, covered = fold.mean()
    assert means["w"].tolist() == [4.0, 2.0, 0.0]
    assert covered["w"].tolist() == [True, True, False]


def test_the_same_order_gives_the_same_bits_and_types_are_summed_wide():
    trees = [(float(n), {"b": torch.randn(5).to(torch.bfloat16)}) for n in range(1, 8)]

    def folded():
        fold = Coverage({"b": torch.Size([5])})
        for weight, tree in trees:
            fold.add(weight, tree)
        return fold.mean()[0]["b"]

    assert torch.equal(folded(), folded())
    assert folded().dtype == torch.float32
    assert weighted_mean(trees)["b"].dtype == torch.float32


def test_a_weight_of_nothing_covers_nothing():
    fold = Coverage({"b": torch.Size([2])})
    fold.add(0.0, {"b": torch.ones(2)})
    assert fold.mean() == ({}, {})


@pytest.mark.parametrize("tree", [{"z": torch.zeros(1)}, {"b": torch.zeros(6)}, {"b": torch.zeros(5, 1)}])
def test_what_the_server_does_not_hold_is_refused(tree):
    with pytest.raises(MethodError, match="a device sent"):
        Coverage({"b": torch.Size([5])}).add(1.0, tree)


def test_weighted_mean_is_a_mean_and_leaves_the_replies_alone():
    trees = [(1.0, {"x": torch.tensor([1.0, 0.0])}), (3.0, {"x": torch.tensor([5.0, 4.0])})]
    assert weighted_mean(trees)["x"].tolist() == [4.0, 3.0]
    assert trees[0][1]["x"].tolist() == [1.0, 0.0]
    with pytest.raises(MethodError, match="nothing"):
        weighted_mean([])
