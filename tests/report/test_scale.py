"""Axes and words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.report.scale import bytes_scale, seconds_scale, value_scale
from fedge.report.words import metric, numbers, plural, spans, with_variant


@given(st.floats(1e-9, 1e9) | st.just(0.0), st.sampled_from([seconds_scale, bytes_scale]))
def test_ticks_from_zero(high, scale):
    made = scale(high)
    values = [value for value, _ in made.ticks]
    assert values == sorted(set(values))
    assert values[0] == 0
    assert values[-1] <= made.high * (1 + 1e-6)
    assert 2 <= len(values) <= 14
    assert len({label for _, label in made.ticks}) == len(values)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_around_values(low, span):
    made = value_scale(low, low + span)
    slack = 1e-9 + 1e-6 * (abs(low) + span)
    assert made.low - slack <= low <= low + span <= made.high + slack
    assert 2 <= len(made.ticks) <= 14
    assert 0 <= made.share(low) <= made.share(low + span) <= 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.5, 0.5), (-3.0, -3.0), (0.0, 5e-324), (1e-310, 2e-310)])
def test_ticks_around_one_value(low, high):
    made = value_scale(low, high)
    assert made.low < low <= high < made.high
    assert len(made.ticks) >= 3


def test_units():
    assert (seconds_scale(90).unit, seconds_scale(600).unit, seconds_scale(9e4).unit) == ("s", "min", "h")
    assert (bytes_scale(5000).unit, bytes_scale(5 << 20).unit, bytes_scale(5 << 30).unit) == ("KiB", "MiB", "GiB")
    assert [label for _, label in seconds_scale(14.3).ticks] == ["0", "5", "10"]


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ([], ""),
        (["phone"], "phone"),
        (["b-01", "b-00"], "b-00, b-01"),
        (["p-09", "p-10", "p-11", "x", "p-13"], "p-09 … p-11, p-13, x"),
        (["a-1", "b-2", "c-3"], "a-1, b-2, c-3"),
        (["p-²", "p-³"], "p-², p-³"),
    ],
)
def test_spans(devices, said):
    assert spans(devices) == said


def test_words():
    assert numbers([4, 2, 3, 3, 7, 8]) == "2 … 4, 7, 8"
    assert with_variant("lora", {"rank": 4, "depth": 0.5}) == "lora (rank=4, depth=0.5)"
    assert (with_variant("lora", {}), with_variant(None, {})) == ("lora", "–")
    assert (plural(1, "device"), plural(2000, "device")) == ("1 device", "2,000 devices")
    assert metric({"accuracy": 0.5, "perplexity": 3.0}) == "perplexity 3.00"
    assert metric({}) == "–"
