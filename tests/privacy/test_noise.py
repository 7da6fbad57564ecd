"""Noise has the spread that was asked for, from either source; trees cover prefixes; clips are clips."""

import math

import numpy as np
import pytest
import torch

from fedge.core.rng import generator
from fedge.privacy.noise import clipped, discrete_gaussian, gaussian, norm, seeded
from fedge.privacy.tree import advance

COUNT = 200_000


@pytest.mark.parametrize("source", [generator("test"), None], ids=["run", "system"])
def test_gaussian_noise_has_its_variance(source):
    drawn = gaussian((COUNT,), 3.0, source)
    assert float(drawn.double().var()) == pytest.approx(9.0, rel=0.02)
    assert abs(float(drawn.double().mean())) < 0.05
    assert float((drawn.double() / 3).pow(4).mean()) == pytest.approx(3.0, rel=0.05)
    assert drawn.dtype == torch.float32


def test_the_system_s_noise_does_not_repeat_and_the_run_s_does():
    assert not torch.equal(gaussian((8,), 1.0, None), gaussian((8,), 1.0, None))
    assert torch.equal(gaussian((8,), 1.0, generator("a")), gaussian((8,), 1.0, generator("a")))


@pytest.mark.parametrize("std", [0.7, 4.3, 900.0])
def test_discrete_noise_follows_its_law(std):
    drawn = discrete_gaussian(COUNT, std, seeded(generator("discrete")))
    support = np.arange(-40 * math.ceil(std), 40 * math.ceil(std) + 1)
    mass = np.exp(-(support.astype(float) ** 2) / (2 * std * std))
    mass /= mass.sum()
    assert drawn.dtype == np.int64
    assert drawn.astype(float).var() == pytest.approx((mass * support.astype(float) ** 2).sum(), rel=0.02)
    if std < 10:
        for value in range(-3, 4):
            expected = mass[support == value][0]
            assert (drawn == value).mean() == pytest.approx(expected, abs=5 * math.sqrt(expected / COUNT))


def test_a_clip_bounds_the_norm_over_all_parts_and_keeps_directions():
    parts = {
        "delta": {"a": torch.full((3,), 2.0), "b": torch.full((4, 2), -1.0)},
        "scalars": {"c": torch.tensor([5.0])},
    }
    assert float(norm(parts)) == pytest.approx(math.sqrt(12 + 8 + 25))
    found, size = clipped(parts, 1.5)
    assert float(norm(found)) == pytest.approx(1.5)
    assert float(size) == pytest.approx(math.sqrt(45))
    assert torch.allclose(found["delta"]["a"] / found["scalars"]["c"], parts["delta"]["a"] / parts["scalars"]["c"])
    small, _ = clipped(parts, 100.0)
    assert torch.equal(small["delta"]["b"], parts["delta"]["b"])


def test_a_tree_s_prefix_has_one_node_a_set_bit():
    """The noise that the sum of t rounds has is popcount(t) nodes', by simulation of one node a unit vector."""
    nodes, drawn = {}, 0
    prefix = torch.zeros(200)

    def fresh(level):
        nonlocal drawn
        drawn += 1
        unit = torch.zeros(200)
        unit[drawn] = 1.0
        return {"x": unit}

    for step in range(1, 65):
        nodes, change = advance(nodes, step, fresh)
        prefix = prefix + change["x"]
        assert float(prefix.square().sum()) == bin(step).count("1"), step
        assert set(prefix.tolist()) <= {0.0, 1.0}
    assert drawn == 64
