"""The real clock's arithmetic: every moment is reckoned from the origin, so nothing adds up, and nothing is lost."""

import json
import math

import pytest

from fedge.emulation.link import Link, transfer_seconds
from fedge.emulation.pace import Pacer, Timeline, Timing, Turn, later
from fedge.emulation.rate import Rate

LINK = Link(down=8e6, up=4e6, latency=0.2, jitter=0.05, loss=0.1)
TIMING = Timing(now=10.0, start=10.0, down=10**6, compute=3.0, down_draw=0.3, up_draw=0.9)


class Clock:
    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_a_message_has_crossed_on_the_wall_clock_when_the_virtual_clock_says_so():
    turn = Turn(TIMING, origin=50.0, slow=2.0)
    there = 10.0 + transfer_seconds(10**6, LINK, "down", 0.3, 10.0)
    done = there + 3.0
    assert turn.passed(10**6, "down", LINK) == pytest.approx(50 + 2 * there)
    assert turn.computed(LINK) == pytest.approx(done)
    assert turn.passed(500, "up", LINK) == pytest.approx(50 + 2 * (done + transfer_seconds(500, LINK, "up", 0.9, done)))


def test_pieces_come_one_after_another_and_the_last_when_the_whole_would():
    changing = Link(4e6, 2e6, 0.05, changing=(Rate((0.0, 11.0), (8e6, 1e6), 60.0), Rate((0.0,), (2e6,), 60.0)))
    for link in (LINK, changing):
        turn = Turn(TIMING, 0.0)
        moments = [turn.passed(n * 10**5, "down", link) for n in range(1, 11)]
        assert moments == sorted(moments)
        assert moments[-1] == pytest.approx(10 + transfer_seconds(10**6, link, "down", 0.3, 10.0))


def test_nobody_waits_beyond_the_end_of_a_turn():
    turn = Turn(Timing(10.0, 10.0, 10**6, 3.0, 0.5, 0.5, end=11.5), origin=0.0)
    assert turn.passed(10**6, "up", LINK) == 11.5
    assert later(turn, 1.0).passed(10**6, "up", LINK) == pytest.approx(11.5)


def test_a_turn_travels_as_json():
    for end in (math.inf, 12.0):
        turn = Turn(Timing(1.0, 2.0, 3, 4.0, 0.5, 0.6, end), 7.0, 8.0)
        assert Turn.from_json(json.loads(json.dumps(turn.to_json(), allow_nan=False))) == turn


def test_what_the_host_takes_between_turns_is_slipped_and_what_ran_ahead_waits():
    clock = Clock()
    line = Timeline(2.0, clock, clock.sleep)
    line.open(5.0)
    assert line.turn(TIMING).wall(5.0) == 100.0
    line.reach(6.0)
    assert clock.now == 102.0
    clock.now += 7.0  # the server tests its model
    line.open(6.0)
    assert line.slipped == 7.0
    first = line.turn(Timing(6.0, 6.0, 1, 1.0, 0.5, 0.5))
    clock.now += 0.5
    assert line.turn(Timing(6.0, 6.0, 1, 1.0, 0.5, 0.5)) == first  # asked at the same moment, told a little later
    assert first.wall(6.0) == 109.0
    line.open(20.0)  # a deadline was waited for on the virtual clock alone
    assert line.turn(Timing(20.0, 20.0, 1, 1.0, 0.5, 0.5)).wall(20.0) == 109.0 + 2 * 14
    line.reach(20.0)
    assert clock.now == 137.0
    line.reach(19.0)
    assert clock.now == 137.0


def test_a_pacer_counts_the_pieces_of_each_message():
    clock = Clock(0.0)
    pacer = Pacer(clock)
    pacer.link = Link(8e6, 8e6)
    header = {"pace": Turn(Timing(0.0, 0.0, 10**6, 1.0, 0.5, 0.5), 0.0).to_json()}
    assert pacer.down(500_000, header) == pytest.approx(0.5)
    clock.now = 0.7  # woken up late
    assert pacer.down(500_000, header) == pytest.approx(0.3)
    assert pacer.up(250_000, header) == pytest.approx(2.25 - 0.7)
    assert pacer.down(500_000, dict(header)) == pytest.approx(0.5 - 0.7)
    assert pacer.down(500_000, {}) == 0.0


def test_a_hurry_lasts_until_the_next_question():
    pacer = Pacer(Clock(0.0))
    pacer.link = Link(8e6, 8e6)
    first, second = ({"pace": Turn(TIMING, 0.0).to_json(), "n": n} for n in range(2))
    assert pacer.down(10, first) > 5
    pacer.hurry()
    assert pacer.up(10, first) == 0.0
    assert pacer.hold(Turn(TIMING, 0.0)) == 0.0
    assert pacer.down(10, second) > 5


def test_what_comes_too_late_is_told():
    clock = Clock(20.0)
    pacer = Pacer(clock)
    pacer.link = Link(8e6, 8e6)
    assert pacer.hold(Turn(TIMING, 0.0)) == pytest.approx(20.0 - (10.0 + 1.0 + 3.0))


def test_a_link_travels_as_json():
    changing = Link(4e6, 2e6, 0.05, changing=(Rate((0.0, 11.0), (8e6, 1e6), 60.0), Rate((0.0,), (2e6,), 60.0)))
    for link in (LINK, changing):
        assert Link.from_json(json.loads(json.dumps(link.to_json()))) == link
