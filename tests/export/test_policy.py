"""Scores and thresholds, by hand and against the search of everything."""

from itertools import product

import numpy as np
import pytest

from fedge.errors import ConfigError, InfeasibleError
from fedge.export.budget import Budget, parse_budget
from fedge.export.criteria import CRITERIA, scores, taken
from fedge.export.policy import NEVER, _grid, _simulated, calibrate, held_apart


def made(rows=300, exits=3, classes=4, seed=0):
    """Logits of exits of which the deeper are more often right, and the labels."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(classes, size=rows)
    found = []
    for at in range(exits):
        logits = draw.normal(size=(rows, classes)).astype(np.float32)
        logits[np.arange(rows), labels] += 0.8 * (at + 1)
        found.append(logits)
    return found, labels


def judged(found, labels, criterion="max_prob"):
    return scores(found, criterion), np.stack([each.argmax(-1) == labels for each in found], axis=1)


def test_scores_by_hand():
    sure, unsure = np.log([[0.7, 0.2, 0.1]]), np.log([[1 / 3] * 3])
    by = {name: scores([sure, unsure, sure], name)[0] for name in CRITERIA}
    assert by["max_prob"] == pytest.approx([0.7, 1 / 3, 0.7], abs=1e-6)
    assert by["margin"] == pytest.approx([0.5, 0, 0.5], abs=1e-6)
    entropy = -(0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1))
    assert by["entropy"] == pytest.approx([1 - entropy / np.log(3), 0, 1 - entropy / np.log(3)], abs=1e-6)
    labels = [np.eye(3)[[label]] for label in (0, 0, 1, 1, 1)]
    assert scores(labels, "patience").tolist() == [[0, 1, 0, 1, 2]]


def test_the_ends_of_a_threshold():
    found, _ = made()
    for criterion in CRITERIA:
        says = scores(found, criterion)
        assert (taken(says, [NEVER, NEVER]) == 2).all()
        assert (taken(says, [-1, -1]) == 0).all()
        depth = [taken(says, [t, t]).mean() for t in np.linspace(0, 1, 11)]
        assert depth == sorted(depth)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_budget_is_kept_and_best_used(criterion):
    found, labels = made()
    says, correct = judged(found, labels, criterion)
    costs = [1.0, 2.0, 4.0]
    accuracies = []
    for budget in (1.0, 1.5, 2.5, 4.0):
        policy = calibrate(says, correct, costs, criterion, Budget("seconds", budget))
        assert policy.cost <= budget
        exits = taken(says, policy.thresholds)
        assert policy.accuracy == pytest.approx(correct[np.arange(300), exits].mean())
        assert policy.shares == pytest.approx(np.bincount(exits, minlength=3) / 300)
        accuracies.append(policy.accuracy)
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] > accuracies[0]


def test_the_search_is_exact():
    found, labels = made(60)
    says, correct = judged(found, labels)
    costs = np.asarray([1.0, 2.0, 4.0])
    grids = [_grid(says[:, at], "max_prob", 3) for at in range(2)]
    tried = [_simulated(says, correct, costs, thresholds) for thresholds in product(*grids)]
    best = max(accuracy for accuracy, cost, _ in tried if cost <= 2)
    assert calibrate(says, correct, costs, "max_prob", Budget("seconds", 2.0)).accuracy == best
    wanted = Budget("accuracy", correct[:, -1].mean())
    least = min(cost for accuracy, cost, _ in tried if accuracy >= wanted.value)
    assert calibrate(says, correct, costs, "max_prob", wanted).cost == least


def test_without_a_budget_nothing_of_the_last_exits_accuracy_is_lost():
    """Thresholds chosen on one draw of rows, judged on another, over and over: accuracy stays, time does not."""
    lost, cost = [], []
    for seed in range(30):
        found, labels = made(1600, seed=seed)
        found = [4 * logits for logits in found]
        says, correct = judged(found, labels)
        policy = calibrate(says[:800], correct[:800], [1.0, 2.0, 3.0], "max_prob")
        exits = taken(says[800:], policy.thresholds)
        early, last = correct[800:][np.arange(800), exits], correct[800:, -1]
        lost.append(last.mean() - early.mean())
        cost.append(np.asarray([1.0, 2.0, 3.0])[exits].mean())
    assert np.mean(lost) < 0.005
    assert np.mean(cost) < 2.9


def test_on_few_rows_nothing_leaves_early():
    found, labels = made(90)
    assert calibrate(*judged(found, labels), [1.0, 2.0, 4.0], "max_prob").cost == 4.0


def test_many_exits_are_searched_one_after_another():
    found, labels = made(exits=6)
    says, correct = judged(found, labels)
    costs = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    policy = calibrate(says, correct, costs, "max_prob", Budget("joules", 3.0))
    assert policy.cost <= 3.0
    assert policy.accuracy > correct[:, 0].mean()
    equal = calibrate(says, correct, costs, "max_prob", Budget("accuracy", correct[:, -1].mean()))
    assert equal.accuracy >= correct[:, -1].mean()
    assert equal.cost < 6.0


def test_a_budget_below_the_first_exit_is_refused():
    found, labels = made()
    with pytest.raises(InfeasibleError, match="the first exit alone costs 2, more than 1"):
        calibrate(*judged(found, labels), [2.0, 3.0, 4.0], "max_prob", Budget("seconds", 1.0))


def test_thresholds_are_chosen_on_rows_that_are_not_reported():
    chosen, rest = held_apart(400)
    assert len(chosen) == 200
    assert sorted([*chosen, *rest]) == list(range(400))
    assert (held_apart(400)[0] == chosen).all()
    assert len(held_apart(10_000)[0]) == 1000
    assert [len(part) for part in held_apart(1)] == [1, 1]


def test_an_accuracy_is_reached_as_cheaply_as_can_be():
    found, labels = made()
    says, correct = judged(found, labels)
    first, last = correct[:, 0].mean(), correct[:, -1].mean()
    policy = calibrate(says, correct, [1.0, 2.0, 4.0], "max_prob", Budget("accuracy", (first + last) / 2))
    assert (first + last) / 2 <= policy.accuracy
    assert 1.0 < policy.cost < calibrate(says, correct, [1.0, 2.0, 4.0], "max_prob").cost
    with pytest.raises(InfeasibleError, match="no thresholds reach an accuracy of 1"):
        calibrate(says, correct, [1.0, 2.0, 4.0], "max_prob", Budget("accuracy", 1.0))


def test_budgets_as_they_are_written():
    assert parse_budget("20ms") == Budget("seconds", 0.02)
    assert parse_budget("50mJ") == Budget("joules", 0.05)
    assert parse_budget("1.5 J") == Budget("joules", 1.5)
    assert parse_budget("90%") == Budget("accuracy", 0.9)
    with pytest.raises(ConfigError, match=r"--budget: .*20ms of time, 50mJ of energy, or 90% of accuracy"):
        parse_budget("soon")
