"""Whether a host can carry a federation in real time: refused with what is short, or slowed down by just that."""

import pytest

from fedge.core.cost import Cost
from fedge.emulation.roofline import Rates
from fedge.errors import LimitError
from fedge.run.admission import CORES, ROOM, Stage, admit, need
from tests.run.fakes import budget

WORK = Cost(peak_memory=1, flops=2e9, traffic=1e9, ops=100)


def test_a_need_is_how_much_longer_the_device_takes():
    host = Rates(1e10, 1e10, 1e-3)
    device = budget(flops=1e9, memory_bandwidth=1e9)
    assert need(WORK, device, host) == pytest.approx((0.2 + 0.1 + 0.1) / (2 + 1))
    assert need(Cost(peak_memory=1), device, host) == 0


def test_a_host_with_room_runs_in_the_devices_own_time():
    found = admit([Stage("train", {"a": 0.3, "b": 0.4}, 2)], cores=2, slowdown=1.0)
    assert (found.slow, found.cores) == (1.0, pytest.approx(ROOM * 0.7))


def test_only_the_neediest_that_a_round_asks_count():
    admit([Stage("train", dict.fromkeys("abcdefgh", 0.5), 2)], cores=2, slowdown=1.0)
    with pytest.raises(LimitError, match="asks 3 devices at once"):
        admit([Stage("train", dict.fromkeys("abcdefgh", 0.5), 3)], cores=2, slowdown=1.0)


def test_too_many_are_refused_with_the_factor_that_would_do():
    stage = Stage("train", dict.fromkeys("abcd", 0.6), 4)
    with pytest.raises(LimitError) as refused:
        admit([stage], cores=2, slowdown=1.0)
    assert "stage train asks 4 devices at once, whose caps add up to 3.12 cores" in refused.value.message
    assert "grants 1.70 (85% of 2)" in refused.value.message
    assert "slowdown: auto (or 1.9 and more)" in str(refused.value.hint)
    assert admit([stage], cores=2, slowdown=1.9).slow == 1.9
    assert admit([stage], cores=2, slowdown="auto").slow == pytest.approx(4 * 0.6 * ROOM / (CORES * 2))


def test_a_device_faster_than_a_core_is_refused_by_name():
    stages = [Stage("train", {"a": 0.1, "fast": 2.0}, 2)]
    with pytest.raises(LimitError, match=r"fast needs 2\.60 cores, and its process can use one"):
        admit(stages, cores=64, slowdown=2.0)
    assert admit(stages, cores=64, slowdown="auto").slow == pytest.approx(2.0 * ROOM)


def test_one_factor_is_for_all_stages():
    stages = [Stage("train", {"a": 1.0}, 1), Stage("customize", {"a": 3.0}, 1), Stage("deploy", {}, 1)]
    assert admit(stages, cores=8, slowdown="auto").slow == pytest.approx(3.0 * ROOM)
