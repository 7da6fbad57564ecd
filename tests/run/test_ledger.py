"""What a turn costs a device: download, work, upload, one after the other, also where the link changes meanwhile."""

from dataclasses import replace

import pytest

from fedge.core.cost import Budget, Cost
from fedge.emulation.link import Link
from fedge.emulation.rate import Rate
from fedge.run.ledger import Account

BUDGET = Budget(memory=1 << 30, flops=1e9, memory_bandwidth=1e9, down=8e6, up=8e6, latency=0.0, active_power=2.0)
COST = Cost(peak_memory=1, shared=0, flops=4e9)


def test_a_turn_is_download_work_upload():
    account = Account("pi", BUDGET, 10)
    assert account.charge(10.0, COST, 1, 10**6, 2 * 10**6) == pytest.approx(10 + 1 + 4 + 2)
    assert (account.bytes_down, account.bytes_up) == (10**6, 2 * 10**6)


@pytest.mark.parametrize(("radio", "joules"), [(0.5, 3 * 0.5), (None, 3 * 1.5)])  # unknown: as much as computing
def test_joules_go_to_idling_computing_and_the_radio(radio, joules):
    watts = {"idle_power": 0.5, "active_power": 2.0, "radio_power": radio}
    account = Account("pi", replace(BUDGET, **watts), 10)
    account.charge(10.0, COST, 1, 10**6, 2 * 10**6)
    assert account.energy_parts == pytest.approx({"idle": 7 * 0.5, "compute": 4 * 1.5, "radio": joules})
    assert sum(account.energy_parts.values()) == pytest.approx(account.energy_j)
    again = Account("pi", BUDGET, 10)
    again.take(account.to_json())
    assert again.energy_parts == account.energy_parts


def test_the_upload_meets_the_rate_of_its_own_second():
    down, up = Rate((0.0, 15.0), (8e6, 4e6), 100.0), Rate((0.0, 15.0), (8e6, 1e6), 100.0)
    account = Account("pi", BUDGET, 10, link=Link(4e6, 1e6, changing=(down, up)))
    assert account.charge(10.0, COST, 1, 10**6, 10**6) == pytest.approx(10 + 1 + 4 + 8)
    assert account.charge(20.0, COST, 1, 10**6, 0) == pytest.approx(20 + 2 + 4)


def test_what_a_checkpoint_keeps_of_an_account_leaves_out_what_the_file_says():
    rate = Rate((0.0,), (8e6,), 1.0)
    account = Account("pi", BUDGET, 10, link=Link(8e6, 8e6, changing=(rate, rate)))
    account.charge(0.0, COST, 1, 10, 10)
    plain = account.to_json()
    assert not {"budget", "link", "availability"} & set(plain)
    again = Account("pi", BUDGET, 10)
    again.take(plain)
    assert (again.free_at, again.bytes_up) == (account.free_at, 10)
