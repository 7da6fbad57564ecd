"""Devices that pick again in the middle of a stage, by the coordinator without processes."""

from fedge.core.cost import Cost
from fedge.plan.choose import Offer, estimate
from fedge.run.reconsider import PATIENCE
from tests.run.fakes import MiB, Play, Sum, brief, budget, coordinator, ending


def offers(*flops):
    """Offers that differ in work alone, the richest first."""
    return tuple(
        Offer(i, "sum", {"flops": f}, Cost(peak_memory=MiB, flops=f, traffic=1e6, depth=9 - i, turns=1))
        for i, f in enumerate(flops)
    )


def play(menu, budgets, **about):
    method = Sum()
    told = brief(method, menu=menu, **about)
    return Play(coordinator(told, devices=3, budgets=budgets, availability=1.0)).stage()


def told(found, event):
    return [(note["device"], note["round"], note.get("reason", "")) for note in found.notes if note["event"] == event]


def test_a_device_that_is_late_time_and_again_looks_for_something_quicker():
    menu = offers(1e9, 2e8)
    # what was planned was in time; the link has become slower than that since
    found = play(menu, {}, rounds=5, deadline=1.6, freely=False)
    slow = {name for name, account in found.of.accounts.items() if account.choice == 1}
    assert slow, "nobody was late"
    again = told(found, "reconsiders")
    assert {name for name, _, _ in again} == slow
    assert {round for _, round, _ in again} == {PATIENCE - 1}
    for name in slow:
        assert name not in found.came(0)
        assert name in found.came(4)  # once it has got to the end of what it was late with
    assert ending(found) == ending(play(menu, {}, rounds=5, deadline=1.6, freely=False))


def test_a_device_for_which_nothing_is_quicker_goes_on():
    found = play(offers(1e9), {}, rounds=5, deadline=1.6, freely=False)
    assert told(found, "lost")
    assert not told(found, "reconsiders")
    assert all(account.choice == 0 for account in found.of.accounts.values())


def drained(rounds):
    """d0's battery is enough for what was planned, and so many rounds' worth of it is spent otherwise at once."""
    menu = offers(1e9, 5e8)
    watts = {"active_power": 10.0, "idle_power": 0.0}
    round_j = estimate(menu[0], budget(**watts)).energy
    budgets = {"d0": budget(**watts, battery=round_j * 1.01), "d1": budget(**watts)}
    found = Play(coordinator(brief(Sum(), menu=menu, rounds=4), devices=3, budgets=budgets))
    found.run(found.of.seek_all(), lambda: found.of.settled)
    found.of.open_stage()
    found.of.accounts["d0"].energy_j += rounds * round_j
    found.rounds(4)
    return found


def test_a_battery_that_runs_low_is_spread_over_the_rounds_that_are_left():
    found = drained(1)
    assert found.of.accounts["d0"].choice == 1
    [(device, round, reason)] = told(found, "reconsiders")
    assert (device, round) == ("d0", 0)
    assert reason.startswith("battery: ")
    assert found.of.accounts["d1"].choice == 0


def test_a_device_with_an_empty_battery_leaves_and_says_so():
    found = drained(4)
    assert found.of.accounts["d0"].out
    assert found.of.accounts["d0"].lost["cause"] == "battery"
    assert [len(found.came(round)) for round in range(4)] == [3, 2, 2, 2]
