"""What is said of this host is what was tried on it."""

import json

from fedge.emulation import quota, wall
from fedge.errors import LimitError
from fedge.report.doctor import doctor_table
from fedge.run.doctor import examine


def test_every_mechanism_is_tried_and_the_first_wall_that_works_is_used():
    found = examine()
    json.dumps(found, allow_nan=False)
    walls = [row for row in found if row["limit"] == "memory" and row["mechanism"] in wall.KINDS]
    assert [row["mechanism"] for row in walls] == list(wall.KINDS)
    working = [row for row in walls if row["works"]]
    assert [row["used"] for row in working] == [True] + [False] * (len(working) - 1)
    assert wall.choose().name == working[0]["mechanism"]
    for row in working:
        burst = wall.find(row["mechanism"]).burst
        assert row["error"] <= burst / wall.PROOF_LIMIT, "nobody gets past a wall by more than it says"
        assert bool(burst) == bool(row["detail"])
    assert {row["mechanism"] for row in found if row["limit"] == "processor"} == set(quota.KINDS)
    paced = [row for row in found if row["limit"] == "network"]
    assert [row["mechanism"] for row in paced] == ["paced messages", "paced round trip"]
    assert paced[0]["error"] <= 0.01, "nothing is faster than its link"
    assert paced[1]["error"] >= -0.01
    assert {"cuda memory share", "cuda MPS share"} <= {row["mechanism"] for row in found}
    for row in found:
        assert row["works"] or row["detail"]


def test_where_nothing_works_the_exit_code_is_told(monkeypatch, capsys):
    def refused(name):
        raise LimitError(f"no {name} here", hint="get one")

    monkeypatch.setattr(wall, "find", refused)
    monkeypatch.setattr(quota, "KINDS", {})
    doctor_table(examine())
    shown = capsys.readouterr().out
    assert "no rlimit here (get one)" in shown
    assert "exit code 4" in shown
