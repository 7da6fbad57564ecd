"""Quantities with units: what is read, what is refused and in which words, and that writing gives reading back."""

import contextlib
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge import units


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_bytes, "512MiB", 512 * 1024**2),
        (units.parse_bytes, "1.5GB", 1_500_000_000),
        (units.parse_bytes, "90 MB", 90_000_000),
        (units.parse_bytes, "64kB", 64_000),
        (units.parse_bytes, "1e3 B", 1000),
        (units.parse_bitrate, "2Mbit/s", 2e6),
        (units.parse_bitrate, "300 kbps", 3e5),
        (units.parse_byterate, "4.8 GB/s", 4.8e9),
        (units.parse_seconds, "40ms", 0.04),
        (units.parse_seconds, "90s", 90.0),
        (units.parse_seconds, "2min", 120.0),
        (units.parse_seconds, "0s", 0.0),
        (units.parse_seconds, 0, 0.0),
        (units.parse_flops, "9 GFLOP/s", 9e9),
        (units.parse_flops, "1.3 tflops", 1.3e12),
        (units.parse_watts, "6W", 6.0),
        (units.parse_watts, "250mW", 0.25),
        (units.parse_share, "80%", 0.8),
        (units.parse_share, 0.8, 0.8),
        (units.parse_share, "0.8", 0.8),
    ],
)
def test_reads(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (units.parse_bytes, 512, "512: a unit is missing; 512MiB?"),
        (units.parse_bytes, "512", "512: a unit is missing; 512MiB?"),
        (units.parse_bytes, "512M", "512M: is that MB or MiB? 512MiB?"),
        (units.parse_bytes, "512Mb", "512Mb: Mb counts bits; 512MB?"),
        (units.parse_bytes, "512 parsecs", "'parsecs' is no unit of a size"),
        (units.parse_bytes, "-1GB", "can't be negative"),
        (units.parse_bytes, "0MiB", "can't be zero"),
        (units.parse_bytes, 0, "0: a size can't be zero, and has a unit"),
        (units.parse_seconds, "1:30", "one number and one unit"),
        (units.parse_seconds, "1m30s", "one number and one unit"),
        (units.parse_flops, "13 TOPS", "in fp32"),
        (units.parse_bytes, "0.2B", "at least 1B"),
        (units.parse_bytes, "nan", "not a finite number"),
        (units.parse_bytes, math.inf, "not a finite number"),
        (units.parse_bytes, "infMiB", "expected a size"),
        (units.parse_bytes, "1,5GB", "the decimal sign is a point"),
        (units.parse_bytes, "1e30GB", "beyond anything real"),
        (units.parse_bytes, "1e999999999GB", "'e999999999GB' is no unit"),
        (units.parse_bytes, "9" * 400, "not a finite number"),
        (units.parse_bytes, 10**400, "not a finite number"),
        (units.parse_bytes, True, "true: expected a size"),
        (units.parse_bytes, None, "nothing: expected a size"),
        (units.parse_bytes, [1], "a list: expected a size"),
        (units.parse_bytes, "", "'': expected a size"),
        (units.parse_bitrate, "2MB/s", "counts bytes"),
        (units.parse_bitrate, "2Mbit", "2Mbit/s?"),
        (units.parse_bitrate, 2, "2Mbit/s?"),
        (units.parse_bitrate, "0bit/s", "can't be zero"),
        (units.parse_seconds, "5m", "5min?"),
        (units.parse_seconds, 40, "40: a unit is missing; 40s?"),
        (units.parse_seconds, "200000d", "beyond anything real"),
        (units.parse_flops, "2GHz", "clock rate"),
        (units.parse_watts, "6J", "energy"),
        (units.parse_share, 80, "80: a share is at most 100%; 80%?"),
        (units.parse_share, "120%", "at most 100%"),
        (units.parse_share, -0.1, "negative"),
        (units.parse_share, "lots", "expected a share"),
        (units.parse_share, True, "expected a share"),
    ],
)
def test_refuses_in_plain_words(parse, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(text)


def test_zero_is_refused_where_it_makes_no_sense():
    with pytest.raises(ValueError, match="can't be zero"):
        units.parse_seconds("0s", zero=False)
    with pytest.raises(ValueError, match="can't be zero"):
        units.parse_share(0, zero=False)


@given(st.integers(min_value=1, max_value=2**60))
def test_bytes_round_trip(size):
    assert units.parse_bytes(units.format_bytes(size, exact=True)) == size


@pytest.mark.parametrize(
    ("parse", "write", "most"),
    [
        (units.parse_bitrate, units.format_bitrate, 1e15),
        (units.parse_byterate, units.format_byterate, 1e16),
        (units.parse_seconds, units.format_seconds, 3e8),
        (units.parse_flops, units.format_flops, 1e21),
        (units.parse_watts, units.format_watts, 1e7),
    ],
)
def test_rates_round_trip(parse, write, most):
    @given(st.floats(min_value=1e-9, max_value=most))
    def check(value):
        assert parse(write(value, exact=True)) == value

    check()


@given(st.floats(min_value=0, max_value=1))
def test_share_round_trip(share):
    assert units.parse_share(units.format_share(share)) == share


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused_with_a_value_error(text):
    for parse in (units.parse_bytes, units.parse_bitrate, units.parse_seconds, units.parse_share):
        with contextlib.suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.format_bytes(41943040), "40 MiB"),
        (units.format_bytes(0), "0 B"),
        (units.format_bytes(1234567), "1.18 MiB"),
        (units.format_bytes(1023.9 * 1024), "1 MiB"),
        (units.format_bytes(512 * 2**20, exact=True), "512MiB"),
        (units.format_bytes(90_000_000, exact=True), "90MB"),
        (units.format_bytes(1234567, exact=True), "1234567B"),
        (units.format_seconds(0.04), "40 ms"),
        (units.format_seconds(812.4), "13 min 32 s"),
        (units.format_seconds(18180), "5 h 03 min"),
        (units.format_seconds(0.04, exact=True), "40ms"),
        (units.format_seconds(90, exact=True), "90s"),
        (units.format_seconds(120.0, exact=True), "2min"),
        (units.format_seconds(0), "0 s"),
        (units.format_bitrate(2e6), "2 Mbit/s"),
        (units.format_byterate(4.8e9), "4.8 GB/s"),
        (units.format_flops(2.4e10), "24 GFLOP/s"),
        (units.format_flops(2.4e10, exact=True), "24GFLOP/s"),
        (units.format_watts(0.25), "250 mW"),
        (units.format_share(0.8), "80%"),
    ],
)
def test_writes(text, expected):
    assert text == expected
