"""Link, roofline and power: plain arithmetic, checked against numbers worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.emulation.link import Link, transfer_seconds
from fedge.emulation.power import energy, parts
from fedge.emulation.roofline import Rates, compute_seconds

SLOW = Link(down=8e6, up=1e6, latency=0.1, jitter=0.02, loss=0.2)


def test_a_step_pays_arithmetic_traffic_and_dispatch():
    rates = Rates(flops=1e9, memory_bandwidth=1e8, per_op=1e-3)
    assert compute_seconds(2e9, 3e8, 500, rates) == pytest.approx(2 + 3 + 0.5)
    assert compute_seconds(0, 0, 0, rates) == 0


def test_families_of_arithmetic_take_their_own_time():
    rates = Rates(flops=1e9, memory_bandwidth=1e8, slower=(("conv", 3.0), ("depthwise", 50.0)))
    half = {"depthwise": 0.5, "recurrent": 0.1}
    assert compute_seconds(2e9, 0, 0, rates, half) == pytest.approx(1 + 50)  # what is not known counts as a product
    assert compute_seconds(2e9, 0, 0, rates, {}) == pytest.approx(2)


@pytest.mark.parametrize("bad", [(0, 1, 0), (1, 0, 0), (1, 1, -1), (float("nan"), 1, 0)])
def test_rates_must_make_sense(bad):
    with pytest.raises(ValueError, match="above zero"):
        Rates(*bad)


def test_a_transfer_by_hand():
    assert transfer_seconds(1_000_000, SLOW, "down") == pytest.approx(8 / 8 / 0.8 + 0.05)
    assert transfer_seconds(1_000_000, SLOW, "up") == pytest.approx(8 / 0.8 + 0.05)
    assert transfer_seconds(0, SLOW, "up") == pytest.approx(0.05)
    assert transfer_seconds(0, SLOW, "up", 0.0) == pytest.approx(0.03)
    assert transfer_seconds(0, SLOW, "up", 0.5) == pytest.approx(0.05)
    assert transfer_seconds(0, Link(1, 1, latency=0.02, jitter=5.0), "up", 0.0) == 0


links = st.builds(
    Link,
    down=st.floats(1, 1e10),
    up=st.floats(1, 1e10),
    latency=st.floats(0, 10),
    jitter=st.floats(0, 10),
    loss=st.floats(0, 0.99),
)
draws = st.none() | st.floats(0, 1, exclude_max=True)


@given(links, st.integers(0, 2**40), st.integers(0, 2**40), st.sampled_from(["down", "up"]), draws)
def test_more_bytes_never_take_less_time(link, a, b, direction, draw):
    less, more = sorted((a, b))
    assert 0 <= transfer_seconds(less, link, direction, draw) <= transfer_seconds(more, link, direction, draw)


@given(links, st.floats(0, 1, exclude_max=True))
def test_jitter_has_no_mean(link, draw):
    pair = transfer_seconds(0, link, "up", draw) + transfer_seconds(0, link, "up", 1 - draw)
    assert pair == pytest.approx(link.latency, abs=1e-9)


@pytest.mark.parametrize("bad", [{"down": 0}, {"up": -1}, {"latency": -1}, {"jitter": -1}, {"loss": 1}, {"loss": -0.1}])
def test_links_must_make_sense(bad):
    with pytest.raises(ValueError, match="link"):
        Link(**{"down": 1, "up": 1, **bad})


def test_energy_by_hand():
    watts = {"idle_w": 1.0, "active_w": 5.0, "radio_w": 0.5}
    assert energy(10, 2, 3, **watts) == pytest.approx(50 + 3 + 3)
    assert parts(10, 2, 3, **watts) == pytest.approx({"idle": 15, "compute": 40, "radio": 1})
