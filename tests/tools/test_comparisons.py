"""What the tools that compare methods make of their runs; the runs themselves are made up."""

import json

import pytest

from tools import ladder, mixed, waiting
from tools.mixed import Outcome


def outcome(accuracy, weak=0.5, seconds=10.0, sent=1000):
    return Outcome(accuracy, weak, seconds, sent, 8, 0, {"fedavg": 20})


class Bench:
    """Arms whose accuracy is written down; the budget carries twice the rounds of the mixed cohort."""

    def __init__(self):
        self.asked = []

    def run(self, arm, seed, rounds):
        self.asked.append((arm, seed, rounds))
        return outcome({"mixed": 0.7, "top layer": 0.5, "strong only": 0.4, "ceiling": 0.8}[arm] + 0.01 * seed, 0.3)

    def carried(self, arm, budget, most):
        return min(16, most), most < 16


def test_every_arm_gets_what_the_budget_carries_and_the_ceiling_the_same_rounds():
    bench = Bench()
    lines = mixed.compare(bench, ["top layer", "strong only", "ceiling"], range(3), 8, 3)
    assert ("strong only", 2, 16) in bench.asked
    assert ("ceiling", 0, 8) in bench.asked
    found = {line["name"]: line for line in lines}
    gain = found["mixed above top layer"]
    assert (gain["value"], gain["holds"], gain["n"]) == (0.2, True, 3)
    assert gain["interval"] == [0.2, 0.2]
    closed = found["share of the gap from top layer to the ceiling that is closed"]
    assert (closed["value"], closed["holds"]) == (pytest.approx(0.6667), True)
    assert not found["mixed above strong only, on weak devices"]["value"]
    assert found["mixed: devices lost"]["value"] == 0


def test_a_cap_on_rounds_is_said():
    lines = mixed.compare(Bench(), ["top layer"], range(1), 8, 1)
    assert any(line.get("note", "").endswith("(more would have fitted)") for line in lines)


def test_an_interval_is_student_s():
    line = mixed._goal("x", [0.1, 0.2, 0.3], 0.0)
    assert line["interval"] == pytest.approx([0.2 - 4.303 * 0.1 / 3**0.5, 0.2 + 4.303 * 0.1 / 3**0.5], abs=1e-4)
    assert mixed._goal("x", [-0.1], 0.0)["holds"] is False


def test_fedbuff_is_judged_seed_by_seed():
    found = {"synchronous": [(2.0, True), (4.0, True)], "deadline": [(1.0, True), (1.0, True)]}
    found["fedbuff"] = [(1.0, True), (1.6, False)]
    lines = {line["name"]: line for line in waiting.figures(found)}
    share = lines["FedBuff's time to the target as a share of synchronous"]
    assert (share["value"], share["holds"]) == (0.45, True)
    assert lines["FedBuff's time to the target as a share of deadline"]["holds"] is False
    assert lines["fedbuff: emulated time to the target"]["reached"] == 1


def test_a_rung_is_measured_once(monkeypatch, tmp_path):
    measured = []

    def measure(self, rung, seed):
        measured.append((rung, seed))
        return 0.5 + 0.1 * seed

    monkeypatch.setattr(ladder.Ready, "measure", measure)
    cache = tmp_path / "ladder.json"
    found = ladder.climb(ladder.TASKS[0], tmp_path, range(2), cache, lambda line: None)
    assert found["full"] == [0.5, 0.6]
    assert len(measured) == 2 * 6
    ladder.climb(ladder.TASKS[0], tmp_path, range(3), cache, lambda line: None)
    assert len(measured) == 3 * 6, "only the new seed"
    assert {entry["task"] for entry in json.loads(cache.read_text()).values()} == {"sst2"}
