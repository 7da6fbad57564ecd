"""A rate that changes: crossing bytes add up to what was asked, whatever the steps, held against a slow walk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.emulation.link import Link, transfer_seconds
from fedge.emulation.rate import Rate

RATES = st.lists(st.integers(0, 50).map(lambda n: n * 1e5), min_size=1, max_size=6).filter(lambda found: max(found) > 0)


def walked(rate, start, nbytes, step=1e-3):
    """When ``nbytes`` have crossed, by small steps."""
    left, now = nbytes * 8.0, start
    while left > 0:
        place = now % rate.length
        at = max(i for i, begin in enumerate(rate.starts) if begin <= place + 1e-9)
        left -= rate.rates[at] * step
        now += step
    return now


@given(RATES, st.integers(0, 30).map(lambda n: n / 4), st.integers(1, 200_000))
def test_finish_is_that_of_a_slow_walk(rates, start, nbytes):
    rate = Rate(tuple(float(i) for i in range(len(rates))), tuple(rates), float(len(rates)))
    assert rate.finish(start, nbytes) == pytest.approx(walked(rate, start, nbytes), abs=5e-3)


@given(RATES, st.integers(0, 30).map(lambda n: n / 4), st.integers(1, 10**7))
def test_between_start_and_finish_just_those_bytes_cross(rates, start, nbytes):
    rate = Rate(tuple(float(i) for i in range(len(rates))), tuple(rates), float(len(rates)))
    end = rate.finish(start, nbytes)
    assert rate.bits(end) - rate.bits(start) == pytest.approx(nbytes * 8, rel=1e-9, abs=1e-3)
    assert rate.finish(start, nbytes + 1000) > end


def test_one_step_is_a_division():
    assert Rate((0.0,), (8e6,), 5.0).finish(3.0, 10**6) == pytest.approx(4.0)
    assert Rate((0.0,), (8e6,), 5.0).finish(3.0, 0) == 3.0


def test_a_message_takes_what_the_second_at_which_it_is_sent_gives():
    rate = Rate((0.0, 10.0), (8e6, 1e6), 20.0)
    link = Link(4.5e6, 4.5e6, latency=0.1, changing=(rate, rate))
    assert transfer_seconds(10**6, link, "down", start=0.0) == pytest.approx(1.05)
    assert transfer_seconds(10**6, link, "down", start=10.0) == pytest.approx(8.05)
    assert transfer_seconds(10**6, link, "up", start=9.5) == pytest.approx(0.5 + 4.0 + 0.05)
    assert transfer_seconds(10**6, link, "up") == pytest.approx(8 / 4.5 + 0.05)


@pytest.mark.parametrize(
    ("starts", "rates", "length"),
    [
        ((), (), 1.0),
        ((1.0,), (1.0,), 2.0),
        ((0.0, 0.0), (1.0, 1.0), 2.0),
        ((0.0,), (0.0,), 1.0),
        ((0.0,), (-1.0,), 1.0),
    ],
)
def test_rates_that_are_none(starts, rates, length):
    with pytest.raises(ValueError, match="rate"):
        Rate(starts, rates, length)
