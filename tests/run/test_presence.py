"""Devices that come, go, and leave in the middle of a round: what counts, what they are charged, who waits."""

import math

import pytest

from fedge.core.cost import Cost
from fedge.emulation.presence import Cycle, Presence, Stay
from fedge.run.ledger import Account
from tests.run.fakes import Play, Sum, brief, budget, coordinator, ending
from tests.run.test_ledger import BUDGET, COST


def there(of, **patterns):
    for name, pattern in patterns.items():
        of.accounts[name].presence = Presence((pattern,))
    return of


def usual(rounds=3, slots=2, **about):
    return coordinator(brief(Sum(), rounds=rounds, **about), devices=3, slots=slots)


def turn_of(name="d0", rounds=1):
    """Seconds from one question to its answer when nobody leaves."""
    return Play(usual(rounds)).stage().of.accounts[name].took


def test_a_device_that_leaves_on_the_way_is_lost_and_charged_for_what_it_did():
    account = Account("pi", BUDGET, 10, presence=Presence((Stay(leaves=13.0),)))
    assert account.charge(10.0, COST, 1, 10**6, 2 * 10**6) == math.inf
    assert (account.free_at, account.virtual_s) == (13.0, pytest.approx(3.0))
    assert (account.bytes_down, account.bytes_up) == (10**6, 0)
    account = Account("pi", BUDGET, 10, presence=Presence((Stay(leaves=16.0),)))
    account.charge(10.0, COST, 1, 10**6, 2 * 10**6)
    assert account.bytes_up == 10**6, "half of the upload"
    assert account.energy_j == pytest.approx(6.0 * 2.0)


def test_who_leaves_in_mid_round_is_lost_for_availability_and_the_round_goes_on():
    when = turn_of("d1") / 2
    play = Play(there(usual(), d1=Stay(leaves=when))).stage()
    assert play.came(0) == ["d0", "d2"]
    assert play.causes() == {"d1": "availability"}
    lost = play.noted("lost")
    assert [(note["device"], note["cause"], note["round"]) for note in lost] == [("d1", "availability", 0)]
    assert "after it was asked" in lost[0]["detail"]
    assert {note["device"] for note in play.noted("unavailable")} == {"d1"}
    assert play.came(1) == ["d0", "d2"]


def test_the_server_learns_of_a_loss_when_the_device_goes():
    slow = turn_of("d2")
    of = there(usual(rounds=1), d2=Stay(leaves=0.9 * slow))
    play = Play(of).stage()
    assert play.came(0) == ["d0", "d1"]
    assert of.now == pytest.approx(0.9 * slow)


def test_a_late_joiner_takes_part_from_then_on():
    play = Play(there(usual(), d1=Stay(joins=turn_of("d2") / 2))).stage()
    assert play.came(0) == ["d0", "d2"]
    assert play.came(1) == ["d0", "d1", "d2"]


def test_a_night_of_everyone_is_waited_through():
    night = {name: Cycle(100.0, 900.0, start=50.0) for name in ("d0", "d1", "d2")}
    play = Play(there(usual(rounds=1), **night)).stage()
    assert play.came(0) == ["d0", "d1", "d2"]
    assert play.of.now == pytest.approx(50.0 + turn_of("d2"))
    gone = Play(there(usual(rounds=2), **dict.fromkeys(night, Stay(joins=0.0, leaves=1e-9)))).stage()
    assert gone.noted("skipped")


def test_drops_are_drawn_by_seed_whatever_the_order():
    def run(pick, slots):
        of = coordinator(brief(Sum(), rounds=12, needs=(5,)), devices=4, slots=slots)
        for account in of.accounts.values():
            account.presence = Presence(drops=0.3)
        return Play(of, pick=pick).stage()

    first = run(lambda n: 0, 1)
    assert ending(first) == ending(run(lambda n: n - 1, 4))
    lost = len(first.noted("lost"))
    assert 4 <= lost <= 25
    assert {note["cause"] for note in first.noted("lost")} == {"availability"}


def test_an_account_is_the_same_without_patterns():
    plain, watched = (Account("pi", budget(), 10, presence=p) for p in (Presence(), Presence((Stay(),))))
    work = Cost(peak_memory=1, flops=1e9)
    assert plain.charge(1.0, work, 1, 1000, 1000) == watched.charge(1.0, work, 1, 1000, 1000)
    assert plain.to_json() == watched.to_json()
