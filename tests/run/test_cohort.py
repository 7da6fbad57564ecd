"""Who is asked: draws that depend on no order, what Oort's utility is by hand, over-selection and late answers."""

import json
import math
from collections import Counter

import pytest

from fedge.run.cohort import available, draw, utilities
from fedge.run.ledger import Account
from tests.run.fakes import Play, Sum, brief, budget, coordinator, ending
from tests.run.test_coordinator import play


def accounts(count=8, **about):
    return [Account(f"d{i}", budget(), 10, choice=0, **about) for i in range(count)]


def often(told, devices, rounds=2000):
    return Counter(name for number in range(rounds) for name in draw(told, devices, number))


@pytest.mark.parametrize("sampling", ["uniform", "availability", "rows", "oort"])
def test_a_draw_depends_on_no_order(sampling):
    told = brief(cohort=3, sampling=sampling)
    devices = accounts()
    for number in range(20):
        found = draw(told, devices, number)
        assert found == draw(told, devices[::-1], number) == tuple(sorted(found))
        assert len(found) == 3
    assert len({draw(told, devices, number) for number in range(20)}) > 5


def test_everyone_is_asked_who_is_there_when_no_more_are_wanted():
    assert draw(brief(), accounts(3), 0) == ("d0", "d1", "d2")
    assert draw(brief(cohort=3, sampling="oort"), accounts(3), 0) == ("d0", "d1", "d2")
    assert draw(brief(cohort=3), [], 0) == ()


def test_a_device_with_more_rows_is_asked_more_often():
    devices = accounts(3)
    devices[0].rows, devices[1].rows, devices[2].rows = 60, 30, 10
    found = often(brief(cohort=1, sampling="rows"), devices)
    assert [found[f"d{i}"] / 2000 for i in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.04)


def test_availability_evens_out_who_takes_part():
    told = brief(cohort=2, sampling="availability")
    devices = [Account(f"d{i}", budget(), 10, availability, choice=0) for i, availability in enumerate([1, 1, 1, 0.4])]

    def took_part(told):
        here = [[a for a in devices if available(told, a, number)] for number in range(2000)]
        return Counter(name for number in range(2000) for name in draw(told, here[number], number))

    plain = took_part(brief(cohort=2))
    evened = took_part(told)
    assert plain["d3"] / plain["d0"] == pytest.approx(1 / 3, abs=0.04)  # 0.4 · 1/2 against 0.4 · 1/2 + 0.6 · 2/3
    assert evened["d3"] / evened["d0"] > plain["d3"] / plain["d0"] + 0.1


def test_utility_by_hand():
    known = accounts(3)
    for account, rows, loss, took, last in zip(
        known, (10, 20, 5), (2.0, 0.5, 4.0), (1.0, 4.0, 2.0), (9, 3, 8), strict=True
    ):
        account.rows, account.met_loss, account.took, account.last_round = rows, loss, took, last
    # the median of the seconds is 2: d1 took twice that, which counts a quarter
    gains = [10 * 2.0, 20 * 0.5 * (2 / 4) ** 2, 5 * 4.0]
    expected = [gain / 20 + math.sqrt(0.1 * math.log(10) / last) for gain, last in zip(gains, (9, 3, 8), strict=True)]
    assert list(utilities(known, 10).values()) == pytest.approx(expected)


def test_oort_tries_everyone_and_then_asks_who_learns_most():
    told = brief(cohort=2, sampling="oort")
    devices = accounts(8)
    seen = Counter()
    for number in range(60):
        for name in draw(told, devices, number):
            account = next(a for a in devices if a.name == name)
            account.met_loss, account.took, account.last_round = (5.0 if name == "d6" else 0.1), 1.0, number
            seen[name] += number >= 10
    assert all(account.met_loss is not None for account in devices)
    assert seen["d6"] == max(seen.values())


def test_oort_avoids_the_slow():
    devices = accounts(4)
    for account in devices:
        account.met_loss, account.took, account.last_round = 1.0, 1.0, 5
    devices[2].took = 30.0
    assert "d2" not in often(brief(cohort=2, sampling="oort"), devices, 200)


def test_oort_goes_on_after_a_resume():
    def begun():
        return Play(coordinator(brief(cohort=2, sampling="oort", rounds=6), devices=5))

    whole = begun().stage()
    first = begun().stage(3)
    second = begun()
    second.run(second.of.seek_all(), lambda: second.of.settled)
    for name, account in first.of.accounts.items():
        second.of.accounts[name].take(json.loads(json.dumps(account.to_json())))
    second.of.round, second.of.now, second.of.state = first.of.round, first.of.now, first.of.state
    second.rounds(3)
    assert ending(second) == ending(whole)


# -- more than needed, and too late ------------------------------------------------------------------------------------


def test_with_over_selection_the_first_answers_count():
    found = play(brief(cohort=2, over=1.5, rounds=1), devices=3)
    assert found.came(0) == ["d0", "d1"]
    assert found.causes() == {"d2": "surplus"}
    assert found.of.now == found.of.accounts["d1"].free_at < found.of.accounts["d2"].free_at
    assert [note["device"] for note in found.noted("surplus")] == ["d2"]
    assert found.of.tally.words() == "2 answered, 1 not needed"
    assert found.of.accounts["d2"].losses == 0, "it did what it was asked"
    assert found.of.accounts["d2"].bytes_up > 0, "and has sent it"


def test_over_selection_covers_for_a_device_that_is_too_late():
    told = brief(cohort=2, over=2.0, rounds=1, deadline=3.5)
    assert play(told, devices=4).came(0) == ["d0", "d1"]
    assert len(draw(told, accounts(), 0)) == 4


def test_late_answers_are_carried_over():
    found = play(brief(rounds=3, deadline=2.5, late="carry"), devices=4)
    assert found.came(0) == ["d0", "d1"]
    assert not found.noted("lost")
    # d2's answer is there at 3 s and d3's at 4, both within the second round, which ends at 5 s
    assert {entry[2]: entry[3] for entry in found.log if entry[0] == 1} == {"d0": 1, "d1": 1, "d2": 0, "d3": 0}


def test_rounds_in_several_turns_wait_for_all_who_are_left():
    found = play(brief(Sum(turns=2), cohort=2, over=1.5, rounds=1), devices=3)
    assert found.came(0, 0) == found.came(0, 1) == ["d0", "d1"]
