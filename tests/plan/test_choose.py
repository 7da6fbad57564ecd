"""The choice: a pure function, and never worse for a device that has more."""

import copy
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedge.core.cost import Budget, Cost
from fedge.plan.choose import Offer, choose, estimate, ranked

MB = 1 << 20


def cost(memory, *, depth=1, trainable=100, flops=1e9, up=1000, down=1000, **more):
    return Cost(
        memory, flops=flops, traffic=flops, bytes_up=up, bytes_down=down, depth=depth, trainable=trainable, **more
    )


def menu(*costs):
    return [Offer(index, f"m{index}", {"rank": index}, each) for index, each in enumerate(costs)]


BUDGET = Budget(100 * MB, flops=1e9, memory_bandwidth=1e9, down=1e6, up=1e6, idle_power=1.0, active_power=3.0)
LADDER = menu(cost(200 * MB, depth=6), cost(90 * MB, depth=6, trainable=50), cost(50 * MB, depth=2), cost(20 * MB))

COSTS = st.builds(
    cost,
    st.integers(1, 300 * MB),
    depth=st.integers(0, 6),
    trainable=st.integers(0, 1000),
    flops=st.floats(0, 1e12),
    up=st.integers(0, 10**7),
    down=st.integers(0, 10**7),
)
MENUS = st.lists(COSTS, min_size=1, max_size=6).map(lambda costs: menu(*costs))
BUDGETS = st.builds(
    Budget,
    st.integers(1, 400 * MB),
    flops=st.floats(1e6, 1e12),
    memory_bandwidth=st.floats(1e6, 1e11),
    down=st.floats(1e3, 1e9),
    up=st.floats(1e3, 1e9),
    latency=st.floats(0, 2),
    idle_power=st.floats(0, 5),
    active_power=st.floats(5, 10),
    deadline=st.none() | st.floats(0.1, 1e4),
    data=st.none() | st.integers(1, 3 * 10**7),
    energy=st.none() | st.floats(0.1, 1e5),
    battery=st.none() | st.floats(0.1, 1e5),
)
LIMITS = st.sampled_from(["memory", "flops", "memory_bandwidth", "down", "up", "deadline", "data", "energy", "battery"])
GOALS = ["quality", "time", "bytes", "energy"]
PREFERENCES = st.sampled_from(GOALS) | st.dictionaries(st.sampled_from(GOALS), st.floats(0.1, 10), min_size=1)


def place(offers, budget, prefer, index):
    """How far down the list of preference a choice stands; nothing at all stands last."""
    order = [e.offer.index for e in ranked(offers, budget, prefer)]
    return len(order) if index is None else order.index(index)


@settings(max_examples=300, deadline=None)
@given(MENUS, BUDGETS, st.floats(1, 10), LIMITS)
def test_more_never_gives_a_worse_choice(offers, budget, times, what):
    have = getattr(budget, what)
    assume(have is not None)
    richer = replace(budget, **{what: int(have * times) if what in ("memory", "data") else have * times})
    before, after = choose(offers, budget), choose(offers, richer)
    # the order of quality does not depend on the device
    assert place(offers, richer, "quality", after.index) <= place(offers, budget, "quality", before.index)


@settings(max_examples=200, deadline=None)
@given(MENUS, BUDGETS, st.floats(1, 10), PREFERENCES)
def test_more_memory_never_gives_a_worse_choice_whatever_is_preferred(offers, budget, times, prefer):
    richer = replace(budget, memory=int(budget.memory * times))
    before, after = (choose(offers, b, prefer=prefer) for b in (budget, richer))
    assert place(offers, richer, prefer, after.index) <= place(offers, budget, prefer, before.index)


@settings(max_examples=300, deadline=None)
@given(MENUS, BUDGETS, st.floats(1, 10), LIMITS, st.sampled_from(GOALS))
def test_more_of_anything_never_costs_more_of_what_is_preferred(offers, budget, times, what, prefer):
    have = getattr(budget, what)
    if have is None:
        return
    richer = replace(budget, **{what: int(have * times) if what in ("memory", "data") else have * times})
    before, after = (choose(offers, b, prefer=prefer) for b in (budget, richer))
    if before.index is None:  # anything is better than nothing
        return
    assert after.index is not None
    poor, rich = estimate(offers[before.index], budget), estimate(offers[after.index], richer)

    def spent(found):
        cost = found.offer.cost
        place_ = place(offers, budget, "quality", found.offer.index)
        return {
            "quality": place_,
            "time": found.seconds,
            "energy": found.energy,
            "bytes": cost.bytes_up + cost.bytes_down,
        }

    assert spent(rich)[prefer] <= spent(poor)[prefer] * (1 + 1e-9)


@settings(max_examples=200, deadline=None)
@given(MENUS, BUDGETS, PREFERENCES, st.booleans(), st.sets(st.integers(0, 5)))
def test_the_choice_is_pure_fits_and_is_not_banned(offers, budget, prefer, freely, banned):
    given_menu, given_banned = copy.deepcopy(offers), set(banned)
    choice = choose(offers, budget, prefer=prefer, banned=banned, freely=freely)
    assert choice == choose(offers, budget, prefer=prefer, banned=banned, freely=freely)
    assert (offers, banned) == (given_menu, given_banned)
    open_ = [e for e in ranked(offers, budget, prefer) if e.offer.index not in banned]
    allowed = [e for e in open_ if not e.broken] if freely else open_
    assert choice.index == (allowed[0].offer.index if allowed else None)
    assert choice.runner_up == (allowed[1].offer.index if len(allowed) > 1 else None)
    assert {e.offer.index for e in open_ if e.broken} <= set(choice.refused)
    assert banned <= set(choice.refused)
    assert choice.reason


def test_the_richest_that_fits_and_why():
    choice = choose(LADDER, BUDGET)
    assert (choice.index, choice.runner_up) == (1, 2)
    assert choice.reason == "m0(rank=0) breaks memory: needs 210 MiB, has 100 MiB; this one needs 94.5 MiB"
    assert choice.refused == {0: "memory: needs 210 MiB, has 100 MiB"}
    choice = choose(LADDER, replace(BUDGET, memory=1000 * MB))
    assert choice.index == 0
    assert choice.reason == "the most preferred of 4 fits (210 MiB of 1000 MiB)"


def test_what_failed_is_not_chosen_again():
    choice = choose(LADDER, BUDGET, banned=[1])
    assert choice.index == 2
    assert choice.refused[1] == "failed here before"
    none = choose(LADDER, BUDGET, banned=[0, 1, 2, 3])
    assert (none.index, none.reason) == (None, "everything on the menu has failed here before")


def test_nothing_fits_and_the_least_need_is_said():
    choice = choose(LADDER, replace(BUDGET, memory=10 * MB))
    assert choice.index is None
    assert choice.reason == "nothing on the menu fits 10 MiB; the leanest needs 24 MiB"


def test_nothing_fits_the_deadline_and_that_is_said():
    choice = choose(LADDER, replace(BUDGET, memory=1000 * MB, deadline=0.5))
    assert choice.index is None
    assert choice.reason == "nothing that fits meets the deadline; the quickest needs 2.02 s"


def test_the_wall_may_decide():
    choice = choose(LADDER, replace(BUDGET, memory=10 * MB), freely=False)
    assert choice.index == 0
    assert choose(LADDER, BUDGET, freely=False, banned=[0]).index == 1


def test_preferences():
    slow = cost(10 * MB, flops=1e10, up=10, down=10)
    chatty = cost(10 * MB, flops=1e9, up=10**7, down=10)
    quick = cost(10 * MB, flops=1e9, up=10**5, down=10)
    offers = menu(slow, chatty, quick)
    assert choose(offers, BUDGET, prefer="bytes").index == 0
    assert choose(offers, BUDGET, prefer="time").index == 2
    assert choose(offers, BUDGET, prefer="energy").index == 2


def test_a_round_by_hand():
    offer = menu(cost(10 * MB, flops=2e9, up=125_000, down=250_000))[0]
    found = estimate(offer, replace(BUDGET, latency=0.2))
    # 2 s down and 1 s up with half a round trip each, 2 s of arithmetic, 2 s of memory
    assert found.seconds == pytest.approx(2 + 1 + 0.2 + 4)
    assert found.energy == pytest.approx(7.2 * 3.0)


def test_the_grey_zone_above_a_need_is_refused():
    for peak in (50 * MB, 200 * MB):
        need = cost(peak).memory_needed
        assert need == peak + max(peak // 20, 4 * MB)
        assert choose(menu(cost(peak)), replace(BUDGET, memory=need)).index == 0
        assert choose(menu(cost(peak)), replace(BUDGET, memory=need - 1)).index is None


def test_data_energy_and_battery_are_limits_too():
    offer = menu(cost(10 * MB, flops=1e9, up=3000, down=2000))  # 0.04 s on the radio, 2 s of work, 3 W
    for limits, words in (
        ({"data": 4999}, "data: needs 4.88 KiB, has 4.88 KiB"),
        ({"energy": 6.0}, "energy: needs 6.12 J, has 6 J"),
        ({"battery": 6.0}, "battery: needs 6.12 J, has 6 J"),
    ):
        budget = replace(BUDGET, **limits)
        choice = choose(offer, budget)
        assert choice.index is None
        assert choice.refused == {0: words}
        assert choice.reason == f"nothing that fits and is in time keeps to {words}"
    assert choose(offer, replace(BUDGET, data=5000, energy=6.2, battery=6.2)).index == 0


def test_weights_weigh_places_and_ratios():
    offers = menu(
        cost(10 * MB, depth=6, up=10**6, down=0),
        cost(10 * MB, depth=5, up=10**3, down=0),
        cost(10 * MB, depth=1, up=10**2, down=0),
    )
    # quality 0, 1/2, 1; bytes on a logarithmic scale 1, 1/4, 0
    assert choose(offers, BUDGET, prefer={"quality": 1.0}).index == 0
    assert choose(offers, BUDGET, prefer={"quality": 1.0, "bytes": 0.5}).index == 0  # 0.5, 0.625, 1
    assert choose(offers, BUDGET, prefer={"quality": 1.0, "bytes": 0.8}).index == 1  # 0.8, 0.7, 1
    assert choose(offers, BUDGET, prefer={"quality": 0.1, "bytes": 1.0}).index == 2
