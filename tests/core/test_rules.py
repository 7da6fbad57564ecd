"""Robust rules against sorting by hand, and against what one or many hostile answers may do."""

import math

import pytest
import torch

from fedge.core import rules

generator = torch.Generator().manual_seed(4)
HONEST = [
    {"x": torch.randn(6, generator=generator) * 0.1 + 1, "y": torch.randn(2, 3, generator=generator)} for _ in range(7)
]
HUGE = {"x": torch.full((6,), 1e6), "y": torch.full((2, 3), -1e6)}


def stacked(answers, name):
    return torch.stack([answer[name] for answer in answers])


@pytest.mark.parametrize("count", [5, 6, 7])
def test_the_median_is_the_middle_of_the_sorted(count):
    found = rules.median(HONEST[:count])
    for name in found:
        ordered = stacked(HONEST[:count], name).sort(0).values
        middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
        assert torch.allclose(found[name], middle, atol=1e-6)


@pytest.mark.parametrize("hostile", [1, 2, 3])
def test_below_half_hostile_the_median_stays_among_the_honest(hostile):
    found = rules.median(HONEST[: hostile + 1] + [HUGE] * hostile)
    honest = stacked(HONEST[: hostile + 1], "x")
    assert bool((found["x"] >= honest.min(0).values - 1e-6).all())
    assert bool((found["x"] <= honest.max(0).values + 1e-6).all())


def test_nothing_trimmed_is_the_mean_and_trimming_drops_both_ends():
    plain = rules.mean(HONEST)
    assert torch.allclose(rules.trimmed(HONEST, 0.0)["y"], plain["y"], atol=1e-6)
    assert torch.allclose(plain["y"], stacked(HONEST, "y").mean(0), atol=1e-6)
    ordered = stacked(HONEST, "x").sort(0).values
    assert torch.allclose(rules.trimmed(HONEST, 0.3)["x"], ordered[2:-2].mean(0), atol=1e-6)
    assert float(rules.trimmed([*HONEST, HUGE], 0.2)["x"].abs().max()) < 2


def test_krum_never_takes_the_one_that_lies_far_off():
    for place in range(8):
        answers = [*HONEST[:place], HUGE, *HONEST[place:]]
        _, chosen = rules.krum(answers, 1)
        assert place not in chosen
        several, many = rules.krum(answers, 1, keep=5)
        assert place not in many
        assert len(many) == 5
        assert torch.allclose(several["x"], stacked([answers[at] for at in many], "x").mean(0), atol=1e-6)


def test_krum_does_not_depend_on_the_order():
    _, (first,) = rules.krum(HONEST, 2)
    turned = HONEST[3:] + HONEST[:3]
    _, (second,) = rules.krum(turned, 2)
    assert torch.equal(HONEST[first]["x"], turned[second]["x"])
    scores = []
    for a in HONEST:
        flat = [sum(float((a[n].double() - b[n].double()).square().sum()) for n in a) for b in HONEST if b is not a]
        scores.append(sum(sorted(flat)[:3]))
    assert first == scores.index(min(scores))


def test_clipping_bounds_every_norm():
    found, bound = rules.clipped([*HONEST, HUGE])
    assert bound == pytest.approx(sorted(rules.norm(answer) for answer in [*HONEST, HUGE])[3])
    assert rules.norm(found) <= bound * (1 + 1e-6)
    alone, _ = rules.clipped([HUGE], 2.0)
    assert rules.norm(alone) == pytest.approx(2.0)


def test_trust_goes_by_direction_alone():
    root = HONEST[0]
    away = {name: -tensor for name, tensor in root.items()}
    plain = rules.trusted([HONEST[1], HONEST[2]], root)
    scaled = rules.trusted([{n: t * 100 for n, t in HONEST[1].items()}, HONEST[2], away], root)
    assert plain is not None
    assert scaled is not None
    assert torch.allclose(plain["x"], scaled["x"], atol=1e-5)
    assert rules.trusted([away], root) is None
    same = rules.trusted([root], root)
    assert same is not None
    assert torch.allclose(same["y"], root["y"], atol=1e-5)


def test_a_coordinate_is_judged_among_those_who_sent_it():
    part = {"y": torch.full((1, 3), 5.0)}
    found = rules.median([{"y": torch.ones(2, 3)}, part, part])
    assert found["y"].tolist() == [[5.0] * 3, [1.0] * 3]
    assert rules.mean([{"x": torch.ones(2)}, part])["x"].tolist() == [1.0, 1.0]
    _, chosen = rules.krum([{"y": torch.ones(2, 3)}, {"y": torch.ones(2, 3)}, part], 0)
    assert chosen == [0]
    assert math.isinf(rules._distance({"x": torch.ones(1)}, part))
