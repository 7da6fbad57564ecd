"""When a device is there: each pattern by itself, all together, and that no order of asking changes an answer."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.emulation.presence import Churn, Cycle, Presence, Stay, Steps

HOUR = 3600.0


def numbers(seed=0):
    return lambda n: random.Random(f"{seed}/{n}").random()


def test_a_late_joiner_and_one_that_leaves_for_good():
    device = Presence((Stay(joins=10.0, leaves=20.0),))
    assert [device.there(t) for t in (0, 9.9, 10, 19.9, 20, 1e6)] == [False, False, True, True, False, False]
    assert (device.back(0.0), device.until(12.0), device.back(25.0)) == (10.0, 20.0, math.inf)
    assert Presence().there(5.0)
    assert (Presence().until(5.0), Presence().back(5.0)) == (math.inf, 5.0)


def test_day_and_night():
    device = Presence((Cycle(10 * HOUR, 14 * HOUR, start=8 * HOUR),))
    assert [device.there(h * HOUR) for h in (0, 7.9, 8, 17.9, 18, 31.9, 32)] == [0, 0, 1, 1, 0, 0, 1]
    assert device.back(0.0) == 8 * HOUR
    assert device.until(9 * HOUR) == 18 * HOUR
    assert device.back(20 * HOUR) == 32 * HOUR


def test_a_recording_begins_again_and_may_say_the_same_twice():
    device = Presence((Steps((0.0, 10.0, 20.0, 30.0), (True, True, False, True), 40.0),))
    assert device.until(0.0) == 20.0
    assert device.back(25.0) == 30.0
    assert device.until(35.0) == 60.0, "over the end of the recording"
    always = Presence((Steps((0.0, 1.0), (True, True), 2.0),))
    assert always.until(0.0) == math.inf


def test_churn_has_the_means_that_were_asked_for():
    churn = Churn(stay=100.0, away=25.0, draw=numbers())
    assert churn.at(0.0)[0]
    there = sum(churn.at(float(second))[0] for second in range(200_000)) / 200_000
    assert there == pytest.approx(0.8, abs=0.03)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=20), st.integers(0, 9))
def test_no_order_of_asking_changes_an_answer(moments, seed):
    one, other = (Churn(60.0, 30.0, numbers(seed)) for _ in range(2))
    forwards = {moment: one.at(moment) for moment in sorted(moments)}
    assert {moment: other.at(moment) for moment in sorted(moments, reverse=True)} == forwards


@settings(deadline=None, max_examples=40)
@given(
    st.floats(0, 1e3),
    st.floats(1.0, 1e4),
    st.floats(1.0, 1e4),
    st.floats(-1e4, 1e4),
)
def test_changes_always_lie_ahead(moment, on, off, start):
    for pattern in (Cycle(on, off, start), Churn(on, off, numbers()), Steps((0.0, on), (True, False), on + off)):
        seen = [moment]
        for _ in range(20):
            seen.append(pattern.at(seen[-1])[1])
        assert all(a < b for a, b in pairwise(seen))


def test_all_patterns_have_to_hold():
    device = Presence((Stay(joins=15.0), Cycle(10.0, 10.0)))
    assert [device.there(t) for t in (5, 12, 16, 21, 35)] == [False, False, False, True, False]
    assert device.back(0.0) == 20.0
    never = Presence((Cycle(10.0, 10.0), Cycle(10.0, 10.0, start=10.0)))
    assert never.back(0.0) == math.inf


def test_a_turn_breaks_off_where_the_device_goes_away():
    device = Presence((Stay(leaves=20.0),), drops=0.5)
    assert device.drop(5.0, 15.0, (0.9, 0.3)) == math.inf
    assert device.drop(5.0, 15.0, (0.4, 0.3)) == 8.0
    assert device.drop(15.0, 25.0, (0.9, 0.3)) == 20.0
    assert device.drop(15.0, 25.0, (0.4, 0.9)) == 20.0
