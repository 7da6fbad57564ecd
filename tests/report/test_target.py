"""Cost to a target and quality within a budget, by hand on a run of 1.3 seconds a round and 20 devices."""

import json

import pytest

from fedge import __main__ as command
from fedge.report.compare import compare
from fedge.report.record import Record
from fedge.report.target import Target, Within, best_within, reached, read_target, read_within

#: 0.2 + 0.77 (1 − 0.7ⁿ) after n rounds of the made-up run.
ACCURACY = [0.97 - 0.77 * 0.7**n for n in range(1, 12)]


def test_the_first_test_that_is_good_enough_counts(finished):
    record = Record(finished)
    after = next(n for n, accuracy in enumerate(ACCURACY, 1) if accuracy >= 0.6)
    cost = reached(record, 0, Target("accuracy", 0.6))
    assert (cost.rounds, cost.virtual_s) == (after, pytest.approx(1.3 * after))
    # two devices are lost in the third round, before they answer; one of them for good
    answered = 20 * after - sum(1 for n in range(2, after) for _ in ([0, 1] if n == 2 else [0]))
    assert cost.bytes == answered * 2 * (1 << 18)
    assert cost.energy_j == 0.0
    assert reached(record, 0, Target("accuracy", 0.99)) is None
    assert reached(record, 0, Target("no such metric", 0)) is None


def test_a_stage_is_counted_from_its_own_start(finished):
    record = Record(finished)
    assert reached(record, 1, Target("accuracy", 0.5)).virtual_s == pytest.approx(1.3)


def test_less_is_better_of_a_loss(finished):
    record = Record(finished)
    assert reached(record, 0, Target("loss", 0.4)).rounds == reached(record, 0, Target("accuracy", 0.6)).rounds


def test_the_last_test_within_a_budget_counts(finished):
    record = Record(finished)
    assert best_within(record, 0, Within(seconds=4.0)).metrics["accuracy"] == pytest.approx(ACCURACY[2])
    assert best_within(record, 0, Within(bytes=20 * 2 * (1 << 18))).round == 0
    assert best_within(record, 0, Within(seconds=4.0, bytes=20 * 2 * (1 << 18))).round == 0
    assert best_within(record, 0, Within(seconds=1.0)) is None
    assert best_within(record, 0, Within()).round == 5


def test_words():
    assert read_target("accuracy=0.9") == Target("accuracy", 0.9)
    assert read_within("90s,20MiB") == Within(90.0, 20 << 20)
    assert read_within("2min") == Within(120.0)
    for wrong in ("accuracy", "=3", "accuracy=high"):
        with pytest.raises(ValueError, match=r"such as accuracy=0\.9"):
            read_target(wrong)
    with pytest.raises(ValueError, match="such as 90s,20MiB"):
        read_within("much")


def test_compare_says_both(finished, again, capsys):
    other = again(rounds=(2, 1))
    rows = compare([finished, other], Target("accuracy", 0.7), Within(seconds=3.0))["compare"]
    assert [row["target_rounds"] for row in rows if row["stage"] == "train"] == [3, None]
    assert {row["within_rounds"] for row in rows if row["stage"] == "train"} == {2}
    with pytest.raises(SystemExit) as ended:
        command.main(["compare", str(finished), str(other), "--target", "accuracy=0.7", "--within", "3s"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "not reached" in said
    assert "within" in said
    with pytest.raises(SystemExit) as ended:
        command.main(["compare", str(finished), str(other), "--target", "good"])
    assert ended.value.code == 2
    assert "such as accuracy=0.9" in capsys.readouterr().err


def test_json_keeps_every_name(finished, again, capsys):
    with pytest.raises(SystemExit):
        command.main(["compare", str(finished), str(again()), "--target", "accuracy=0.7", "--json"])
    row = json.loads(capsys.readouterr().out)["compare"][0]
    assert {"target_s", "target_bytes", "target_j", "target_rounds", "virtual_s", "lost"} <= set(row)
