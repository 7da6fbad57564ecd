"""The least of a device: with it a method is just in time, with a hair less it is not."""

from dataclasses import replace

from hypothesis import given, settings

from fedge.core.cost import Budget
from fedge.plan.choose import Offer, estimate
from fedge.plan.invert import least_compute, least_link, rows, scaled
from tests.plan.test_choose import BUDGETS, COSTS, MB, cost, menu

BUDGET = Budget(100 * MB, flops=1e9, memory_bandwidth=1e9, down=1e6, up=1e6, latency=0.2, deadline=10.0)


@settings(max_examples=300, deadline=None)
@given(COSTS, BUDGETS)
def test_the_least_is_just_enough(one, budget):
    offer = Offer(0, "m", {}, one)
    for least, name in ((least_link, "link"), (least_compute, "compute")):
        factor = least(offer, budget)
        if budget.deadline is None:
            assert factor == 0
        elif factor is None:  # no amount does
            assert estimate(offer, scaled(budget, **{name: 1e15})).seconds >= budget.deadline * (1 - 1e-6)
        elif 1e-6 < factor < 1e6:
            assert estimate(offer, scaled(budget, **{name: factor * 1.001})).seconds <= budget.deadline * (1 + 1e-9)
            assert estimate(offer, scaled(budget, **{name: factor * 0.999})).seconds >= budget.deadline * (1 - 1e-9)


def test_by_hand():
    # 4 s of work, 0.2 s of latency, 2 s down and 1 s up at 1 Mbit/s
    offers = menu(
        cost(50 * MB, flops=2e9, up=125_000, down=250_000), cost(20 * MB, flops=2e9, up=125_000, down=250_000)
    )
    offers = [replace(offer, method="lora") for offer in offers]
    (row,) = rows("customize", offers, [("pi", BUDGET)])
    assert (row["memory"], row["memory_variant"]) == (24 * MB, {"rank": 1})
    assert abs(row["up"] - 1e6 * 3 / 5.8) < 1
    assert abs(row["compute"] - 1e9 * 4 / 6.8) < 1
    assert row["held"]


def test_what_is_never_in_time_has_no_least():
    (row,) = rows("customize", menu(cost(20 * MB, flops=1e12)), [("pi", BUDGET)])
    assert (row["memory"], row["down"]) == (None, None)
    assert row["compute"] is not None
    (row,) = rows("customize", menu(cost(20 * MB, flops=1e12)), [("pi", replace(BUDGET, memory=MB))])
    assert (row["compute"], row["held"]) == (None, False)
