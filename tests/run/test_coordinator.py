"""The coordinator without processes: slots, order, lateness, losses, deaths and cohorts."""

import math
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.core.method import Ask
from fedge.core.payload import Payload
from fedge.run.events import Answered, Died, Lost
from fedge.run.stash import Stash
from tests.run.fakes import MiB, Play, Sum, brief, budget, coordinator, ending, number, play

# -- slots and order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 3, 10])
def test_no_more_devices_compute_at_once_than_there_are_slots(slots):
    found = play(devices=6, slots=slots)
    assert found.computing == min(slots, 6)
    assert ending(found) == ending(play(devices=6, slots=2))


METHODS = [
    Sum(),
    Sum(turns=3),
    Sum(want=2, keep=True),
    Sum(turns=2, everyone_always=True),
    Sum(turns=2, deadline=2.5),
    Sum(want=3),
]


@pytest.mark.parametrize("method", METHODS)
def test_answers_that_lie_in_files_count_as_those_in_memory(method, tmp_path):
    told = brief(method, deadline=4.0, rounds=4)
    place = tmp_path / "answers"
    seen = []

    class Seen(Stash):
        def put(self, data):
            path = super().put(data)
            seen.append(path is not None and path.is_file())
            return path

    stashed = play(told, devices=5, stash=Seen(place, limit=100))
    assert ending(stashed) == ending(play(told, devices=5))
    assert any(seen)
    assert not place.exists()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_order_of_events_leaves_no_trace(data):
    method = data.draw(st.sampled_from(METHODS))
    told = brief(
        method, rounds=4, cohort=data.draw(st.sampled_from([None, 3])), deadline=data.draw(st.sampled_from([None, 4.0]))
    )
    faults = data.draw(
        st.dictionaries(
            st.tuples(st.sampled_from(["d0", "d2", "d4"]), st.integers(0, 3), st.integers(0, method.turns - 1)),
            st.sampled_from(["memory", "died", "nan"]),
            max_size=4,
        )
    )

    def happen(place, what):
        if what == "memory":
            return Lost(place[0], "memory", "backward", 60 * MiB, 50 * MiB)
        return Died(place[0], "killed") if what == "died" else number(math.nan)

    def run(pick, slots):
        fresh = {place: happen(place, what) for place, what in faults.items()}
        return play(told, pick, fresh, devices=5, slots=slots, restart=10, availability=0.9)

    usual = run(lambda n: 0, 2)
    other = run(lambda n: data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, 5)))
    assert ending(other) == ending(usual)

    def without_order(found):
        return Counter(repr(sorted(note.items())) for note in found.notes if note["event"] != "died")

    assert without_order(other) == without_order(usual)


def test_answers_of_another_turn_round_or_device_are_ignored():
    found = Play(coordinator(brief(Sum(turns=2)), devices=2))
    of = found.of
    found.run(of.seek_all(), lambda: of.settled)
    of.open_stage()
    found.do(of.open_round())
    for stale in [(1, 0), (0, 1), (5, 5)]:
        assert of.handle(Answered("d0", *stale, number(9).to_bytes(), True, None)) == []
    first = found.waiting[0]
    of.handle(first)
    charged = of.accounts["d0"].bytes_up
    assert charged > 0
    assert of.handle(first) == [], "the same answer twice"
    assert of.accounts["d0"].bytes_up == charged


# -- the emulated clock ------------------------------------------------------------------------------------------------


def test_the_clock_ends_a_turn_with_the_slowest_answer():
    found = play(rounds=1)
    arrivals = [account.free_at for account in found.of.accounts.values()]
    assert found.of.now == max(arrivals)
    assert min(arrivals) > 1.0  # 1e9 operations at 1e9 a second, and the link
    assert sorted(arrivals) == arrivals  # each device is slower than the one before


def test_late_answers_that_are_kept_arrive_later_in_emulated_order():
    # d0 answers after 1 s, d1 after 2, d2 after 3, d3 after 4; two answers end a round
    found = play(brief(Sum(want=2, keep=True), rounds=3))
    assert found.came(0) == ["d0", "d1"]
    assert found.log[:2] == [[0, 0, "d0", 0], [0, 0, "d1", 0]]
    # then d0 is asked at 2 s and is there at 3, with d2's first; d3's first and d1's second come after
    assert set(found.came(1)) == {"d0", "d2"}
    assert {entry[2]: entry[3] for entry in found.log if entry[0] == 1} == {"d0": 1, "d2": 0}
    assert not found.causes()
    waiting = [note["cohort"] for note in found.noted("round")]
    assert waiting[1] == ["d0", "d1"], "who is under way is not asked again"


def test_progress_tells_answers_kept_from_earlier_rounds_from_this_round_s():
    found = play(brief(Sum(want=2, keep=True), rounds=1))
    assert found.of.tally.words() == "2 answered, 2 too late"
    found.rounds(1)  # d0 and d1 are asked again; d2's first answer is there before d1's second
    assert found.of.tally.words() == "1 answered, 1 too late, 1 kept from earlier rounds"


def test_who_is_lost_after_an_answer_has_not_answered():
    found = play(brief(Sum(turns=2), rounds=1), faults={("d1", 0, 1): Lost("d1", "fault", "crash")})
    assert found.of.tally.words() == "3 answered"


def test_what_is_kept_waits_for_a_turn_that_takes_it():
    @dataclass(frozen=True, kw_only=True)
    class Mixed(Sum):
        def round(self, srv, state):
            log = list(state["log"])
            keep = srv.round != 1
            replies = yield Ask({d: number(1) for d in srv.cohort}, want=1 if keep else None, keep=keep)
            log += [[srv.round, 0, device, replies.asked[device]] for device in replies]
            return {"x": state["x"], "log": log}

    found = play(brief(Mixed(), rounds=3), devices=2)
    assert found.log == [[0, 0, "d0", 0], [1, 0, "d0", 1], [2, 0, "d1", 0]]


def test_a_deadline_drops_who_is_late_and_the_clock_stands_at_it():
    found = play(brief(deadline=2.5, rounds=1))
    assert found.came(0) == ["d0", "d1"]
    assert found.causes() == {"d2": "deadline", "d3": "deadline"}
    assert found.of.tally.words() == "2 answered, 2 too late"
    assert found.of.now == 2.5
    lost = found.noted("lost")
    assert [(note["device"], note["cause"]) for note in lost] == [("d2", "deadline"), ("d3", "deadline")]
    assert found.of.accounts["d2"].lost == {
        "round": 0, "cause": "deadline", "phase": None, "peak": None, "cap": None,
    }  # fmt: skip
    # it is still busy with its old answer when it is asked again
    found.rounds(1)
    assert found.of.accounts["d3"].free_at > 8


def test_a_turns_own_deadline_counts_from_its_question():
    found = play(brief(Sum(turns=2, deadline=2.5), rounds=1))
    assert found.came(0, 1) == ["d0", "d1"]
    assert found.of.now > 2.5


def test_who_was_dropped_takes_no_further_part_in_the_round():
    found = play(brief(Sum(turns=2, deadline=2.5, everyone_always=True), rounds=2))
    assert found.came(0, 1) == ["d0", "d1"]
    assert [entry for entry in found.log if entry[:3] == [0, 1, "d3"]] == [[0, 1, "d3", "deadline"]]
    assert ("d3", 0, 1) not in found.sends
    assert found.came(1)  # and is asked again in the next


def test_with_a_deadline_the_server_waits_for_who_died():
    lost = {("d0", 0, 0): Lost("d0", "memory", "backward", 60 * MiB, 50 * MiB)}
    assert play(brief(deadline=50.0, rounds=1), faults=lost).of.now == 50.0
    assert play(brief(rounds=1), faults=lost).of.now < 5.0


# -- quorum ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quorum", "counts"), [(0, True), (2, True), (3, False), (0.5, True), (0.51, False), (1.0, False)]
)
def test_a_round_below_its_quorum_leaves_the_state_as_it_was(quorum, counts):
    found = play(brief(deadline=2.5, rounds=1, quorum=quorum))
    assert bool(found.log) == counts
    assert (found.x == 1.0) != counts
    assert bool(found.noted("abandoned")) != counts
    assert found.of.round == 1


def test_nobody_answering_abandons_a_round_without_a_quorum():
    found = play(brief(deadline=0.5, rounds=2))
    assert found.x == 1.0
    assert len(found.noted("abandoned")) == 2
    assert found.of.now == 1.0


def test_a_quorum_never_asks_for_more_than_the_method_waits_for():
    found = play(brief(Sum(want=2, keep=True), rounds=3, quorum=0.8))
    assert not found.noted("abandoned")


# -- losses ------------------------------------------------------------------------------------------------------------


def memory(device, round=0, turn=0):
    return {(device, round, turn): Lost(device, "memory", "backward", 60 * MiB, 50 * MiB)}


def test_a_device_out_of_memory_picks_lower_in_the_next_round():
    found = play(faults=memory("d1"), rounds=2)
    account = found.of.accounts["d1"]
    assert account.banned == {0}
    assert account.choice == 1
    assert found.causes() == {"d1": "memory"}
    assert found.came(0) == ["d0", "d2", "d3"]
    assert found.came(1) == ["d0", "d1", "d2", "d3"]
    assert account.lost == {"round": 0, "cause": "memory", "phase": "backward", "peak": 60 * MiB, "cap": 50 * MiB}
    note = found.noted("lost")[0]
    assert note["method"] == "sum"
    assert note["variant"] == {"need": 50}
    assert [n["variant"] for n in found.noted("picked") if n["device"] == "d1"] == [{"need": 50}, {"need": 20}]


def test_what_needs_as_much_as_what_failed_is_not_tried():
    found = play(brief(needs=(50, 60, 50, 20)), faults=memory("d1"), rounds=1)
    assert found.of.accounts["d1"].banned == {0, 1, 2}


def test_a_device_for_which_nothing_is_left_is_out_by_name():
    faults = {**memory("d1"), **memory("d1", 1), **memory("d1", 2)}
    found = play(faults=faults, rounds=4)
    account = found.of.accounts["d1"]
    assert account.out
    assert account.losses == 3
    assert found.came(3) == ["d0", "d2", "d3"]
    left_out = found.noted("left-out")
    assert [note["device"] for note in left_out] == ["d1"]
    assert left_out[0]["reason"] == "everything on the menu has failed here before"
    assert "d1" not in found.of.ready


def test_a_device_that_affords_nothing_never_takes_part():
    found = play(budgets={"d1": budget(memory=MiB)}, rounds=1)
    assert found.of.accounts["d1"].lost["phase"] == "plan"
    assert found.came(0) == ["d0", "d2", "d3"]


def garbled() -> bytearray:
    return number(1).to_bytes()[:-3]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (garbled(), "header can't be read"),
        (bytearray(b"nothing of the kind"), "does not fit"),
        (number(math.nan), "scalars 'x' holds numbers that are not finite"),
        (Payload({"delta": {"head.weight": torch.tensor([1.0, math.inf])}}), "delta 'head.weight' holds"),
    ],
)
def test_an_answer_that_would_spoil_the_rest_loses_its_device_and_no_other(answer, words):
    found = play(faults={("d2", 0, 0): answer}, rounds=2)
    note = found.noted("lost")[0]
    assert (note["device"], note["cause"]) == ("d2", "protocol")
    assert words in note["detail"] or "outside the payload" in note["detail"]
    assert found.causes()["d2"] == "protocol"
    assert found.came(1) == ["d0", "d1", "d3"]
    assert math.isfinite(found.x)
    assert "d2" in found.ends


def test_whole_numbers_need_not_be_finite():
    keys = Payload({"keys": {"x": torch.tensor([1, 2])}, "scalars": {"x": torch.tensor(2.0, dtype=torch.float64)}})
    assert not play(faults={("d2", 0, 0): keys}, rounds=1).noted("lost")


# -- the host's deaths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize("slots", [1, 4])
def test_a_death_in_a_conversation_is_replayed_to_the_same_state(turn, slots):
    told = brief(Sum(turns=3))
    calm = play(told, slots=slots)
    found = play(told, faults={("d1", 1, turn): Died("d1", "killed by signal 9")}, slots=slots)
    assert (found.x, found.log, found.of.now) == (calm.x, calm.log, calm.of.now)
    assert found.of.accounts["d1"].restarts == 1
    assert found.of.accounts["d1"].bytes_up == calm.of.accounts["d1"].bytes_up, "a replay is charged once"
    assert found.of.accounts["d1"].reason == calm.of.accounts["d1"].reason
    assert not found.noted("lost")
    assert [place for place in found.sends if place[:2] == ("d1", 1)] == [
        *[("d1", 1, t) for t in range(turn + 1)], *[("d1", 1, t) for t in range(3)]
    ]  # fmt: skip


@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize("pick", [lambda n: 0, lambda n: n - 1], ids=["oldest", "newest"])
def test_a_death_between_turns_is_replayed_too(turn, pick):
    told = brief(Sum(turns=3))
    calm = play(told, pick)
    found = play(told, pick, after={("d1", 0, turn)})
    assert (found.x, found.log, found.of.now) == (calm.x, calm.log, calm.of.now)


def test_a_death_while_waiting_for_a_slot():
    found = Play(coordinator(brief(), slots=1))
    of = found.of
    found.run(of.seek_all(), lambda: of.settled)
    of.open_stage()
    found.do(of.open_round())
    found.do(of.handle(Died("d3")))
    found.run([], lambda: not of.round_open and of.settled)
    of.close_round()
    assert ending(found)[:3] == ending(play(slots=1, rounds=1))[:3]


def test_too_many_deaths_are_a_loss_by_the_host():
    deaths = {("d1", 0, 0): Died("d1", "killed by signal 9"), ("d1", 1, 0): Died("d1", "killed by signal 9")}
    found = play(faults=deaths)
    account = found.of.accounts["d1"]
    assert account.out
    assert account.lost["cause"] == "host"
    assert found.causes() == {"d1": "host"}
    assert found.came(2) == ["d0", "d2", "d3"]
    assert found.noted("lost")[0]["detail"] == "killed by signal 9"


def test_with_restart_0_the_first_death_is_final():
    found = play(faults={("d1", 0, 0): Died("d1")}, restart=0)
    assert found.of.accounts["d1"].lost["cause"] == "host"


def test_what_is_told_of_a_device_that_is_out_changes_nothing():
    found = play(faults={("d1", 0, 0): Died("d1")}, restart=0)
    for event in (Died("d1"), Lost("d1", "memory"), Answered("d1", 0, 0, number(1).to_bytes(), True, None)):
        assert found.of.handle(event) == []


# -- cohorts -----------------------------------------------------------------------------------------------------------


def test_cohorts_are_uniform_and_do_not_depend_on_the_files_order():
    told = brief(cohort=4, rounds=300)
    found = play(told, devices=12)
    cohorts = [note["cohort"] for note in found.noted("round")]
    assert {len(cohort) for cohort in cohorts} == {4}
    seen = Counter(device for cohort in cohorts for device in cohort)
    assert len(seen) == 12
    # 300 draws with probability 1/3: 100 on average, standard deviation 8
    assert all(60 < count < 140 for count in seen.values()), seen
    pairs = Counter((a, b) for cohort in cohorts for a in cohort for b in cohort if a < b)
    assert len(pairs) == 66
    names = [f"d{i}" for i in range(12)]
    other = play(replace(told, rounds=20), devices=names[::-1])
    assert [note["cohort"] for note in other.noted("round")] == cohorts[:20]


def test_availability_is_drawn_for_each_device_and_round():
    found = play(brief(rounds=200), devices=4, availability=0.7)
    away = Counter(note["device"] for note in found.noted("unavailable"))
    assert all(35 < away[f"d{i}"] < 85 for i in range(4)), away
    cohorts = [tuple(note["cohort"]) for note in found.noted("round")]
    assert len(set(cohorts)) > 8
    assert cohorts == [tuple(n["cohort"]) for n in play(brief(rounds=200), availability=0.7).noted("round")]


def test_a_round_without_anybody_is_skipped():
    found = play(availability=0.0, rounds=2)
    assert len(found.noted("skipped")) == 2
    assert found.x == 1.0
    assert found.of.round == 2
