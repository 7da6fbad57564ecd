"""Server optimizers against their formulas in plain floats, and the facts that tie them to each other."""

from math import sqrt

import pytest
import torch

from fedge.core.server import ADAPTIVE, KINDS, ServerOptimizer

CHANGES = [0.5, -0.25, 0.0, 1e-4, -2.0]


def by_hand(kind, changes, lr, b1, b2, tau):
    """One weight through several rounds."""
    w, m, v = 1.0, 0.0, tau**2
    for d in changes:
        if kind == "fedavg":
            w += lr * d
            continue
        if kind == "fedavgm":
            m = b1 * m + d
            w += lr * m
            continue
        if kind == "nesterov":
            m = b1 * m + d
            w += lr * (d + b1 * m)
            continue
        m = b1 * m + (1 - b1) * d
        if kind == "fedadagrad":
            v = v + d * d
        elif kind == "fedadam":
            v = b2 * v + (1 - b2) * d * d
        else:
            sign = (v > d * d) - (v < d * d)
            v = v - (1 - b2) * d * d * sign
        w += lr * m / (sqrt(v) + tau)
    return w


def run(optimizer, changes, covered=None):
    weights, moments = {"w": torch.ones(1, dtype=torch.float64)}, {}
    for change in changes:
        weights, moments = optimizer.step(weights, {"w": torch.tensor([change], dtype=torch.float64)}, moments, covered)
    return float(weights["w"]), moments


@pytest.mark.parametrize("kind", KINDS)
def test_the_formulas(kind):
    numbers = {"lr": 0.3, "momentum": 0.8, "beta2": 0.95, "tau": 1e-2}
    found, _ = run(ServerOptimizer(kind, **numbers), CHANGES)
    assert found == pytest.approx(by_hand(kind, CHANGES, 0.3, 0.8, 0.95, 1e-2), rel=1e-12)


def test_momentum_of_nothing_is_fedavg():
    assert run(ServerOptimizer("fedavgm", momentum=0.0), CHANGES)[0] == run(ServerOptimizer(), CHANGES)[0]


def test_an_adaptive_step_with_a_huge_tau_is_fedavg():
    # v starts at tau², so the divisor is 2 tau when v hardly moves
    tau = 1e6
    for kind in ADAPTIVE:
        found, _ = run(ServerOptimizer(kind, lr=2 * tau, momentum=0.0, beta2=1.0, tau=tau), CHANGES)
        assert found == pytest.approx(run(ServerOptimizer(), CHANGES)[0], abs=1e-9)


def test_with_v_at_zero_tau_itself_is_the_rate():
    tau = 1e6
    optimizer = ServerOptimizer("fedadam", lr=tau, momentum=0.0, beta2=1.0, tau=tau)
    change = {"w": torch.tensor([0.5], dtype=torch.float64)}
    start = {"w": torch.ones(1, dtype=torch.float64)}
    weights, _ = optimizer.step(start, change, {"v": {"w": torch.zeros(1, dtype=torch.float64)}})
    assert float(weights["w"]) == pytest.approx(1.5, abs=1e-10)


def test_beta2_of_one_keeps_v_and_needs_twice_tau():
    optimizer = ServerOptimizer("fedadam", lr=2e-3, momentum=0.0, beta2=1.0, tau=1e-3)
    assert run(optimizer, [0.5])[0] == pytest.approx(1.5, abs=1e-12)


def test_yogi_s_first_step_adds_when_the_change_is_larger_than_v():
    _, moments = run(ServerOptimizer("fedyogi", beta2=0.9, tau=1e-3), [0.5])
    assert float(moments["v"]["w"]) == pytest.approx(1e-6 + 0.1 * 0.25, rel=1e-12)


def test_the_step_goes_where_the_change_points():
    for kind in KINDS:
        assert run(ServerOptimizer(kind), [0.1])[0] > 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_uncovered_coordinates_keep_weight_and_moments(kind):
    optimizer = ServerOptimizer(kind, lr=0.5, tau=0.1)
    weights, moments = optimizer.step({"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 2.0])}, {})
    before = {name: tree["w"].clone() for name, tree in moments.items()}
    stepped, moments = optimizer.step(
        weights, {"w": torch.tensor([1.0, 9.0])}, moments, {"w": torch.tensor([True, False])}
    )
    assert stepped["w"][1] == weights["w"][1]
    assert stepped["w"][0] != weights["w"][0]
    alone, kept = optimizer.step(
        {"w": weights["w"][:1]}, {"w": torch.tensor([1.0])}, {k: {"w": t[:1]} for k, t in before.items()}
    )
    assert stepped["w"][0] == alone["w"][0]
    for name, tree in moments.items():
        assert tree["w"][1] == before[name][1]
        assert tree["w"][0] == kept[name]["w"][0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_coordinate_that_was_never_covered_starts_as_any_other(kind):
    optimizer = ServerOptimizer(kind, tau=0.1)
    mask = {"w": torch.tensor([True, False])}
    weights, moments = optimizer.step({"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 0.0])}, {}, mask)
    weights, _ = optimizer.step(weights, {"w": torch.tensor([0.0, 1.0])}, moments, {"w": torch.tensor([False, True])})
    assert weights["w"][0] == weights["w"][1]


def test_what_nobody_sent_stays_and_nothing_given_is_written():
    weights, moments = {"w": torch.ones(2), "x": torch.ones(2)}, {"m": {"w": torch.ones(2)}}
    stepped, new = ServerOptimizer("fedavgm").step(weights, {"w": torch.ones(2)}, moments)
    assert stepped["x"] is weights["x"]
    assert weights["w"].tolist() == [1, 1]
    assert moments["m"]["w"].tolist() == [1, 1]
    assert torch.allclose(new["m"]["w"], torch.tensor(1.9))


def test_integers_are_taken_over():
    stepped, _ = ServerOptimizer("fedadam").step({"n": torch.tensor([3])}, {"n": torch.tensor([2.0])}, {})
    assert stepped["n"].tolist() == [5]
    assert stepped["n"].dtype == torch.int64


def test_the_weights_type_is_kept():
    stepped, _ = ServerOptimizer("fedadam").step({"w": torch.ones(2).bfloat16()}, {"w": torch.ones(2)}, {})
    assert stepped["w"].dtype == torch.bfloat16
