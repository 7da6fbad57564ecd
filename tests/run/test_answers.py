"""Which answers of a turn count, decided from their arrivals alone."""

from __future__ import annotations

import math

import pytest

from fedge.core.method import Ask
from fedge.core.payload import Payload
from fedge.run.answers import Here, judge


def turn(want=None, *, end=math.inf, gone=0, **arrivals):
    here = {device: Here(when, Payload(), 0) for device, when in arrivals.items()}
    judged = judge(here, Ask({}, want=want), now=1.0, end=end, gone=gone)
    return "".join(judged.taken), "".join(judged.late), judged.finished


@pytest.mark.parametrize(
    ("about", "found"),
    [
        ({}, ("", "", 1.0)),
        ({"b": 3.0, "a": 2.0}, ("ab", "", 3.0)),
        ({"b": 2.0, "a": 2.0}, ("ab", "", 2.0)),
        ({"b": 3.0, "a": 5.0, "end": 4.0}, ("b", "a", 4.0)),
        ({"b": 4.0, "a": 5.0, "end": 4.0}, ("b", "a", 4.0)),
        ({"b": 3.0, "end": 4.0}, ("b", "", 3.0)),
        ({"b": 3.0, "end": 4.0, "gone": 1}, ("b", "", 4.0)),
        ({"b": 3.0, "gone": 1}, ("b", "", 3.0)),
        ({"b": 3.0, "a": 2.0, "c": 2.5, "want": 2}, ("ac", "b", 2.5)),
        ({"b": 3.0, "want": 2, "end": 4.0, "gone": 1}, ("b", "", 4.0)),
        ({"b": 0.5}, ("b", "", 1.0)),
    ],
)
def test_who_counts_and_when_the_turn_is_over(about, found):
    assert turn(**about) == found
