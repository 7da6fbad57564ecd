"""Privacy in a run: what it spends is told everywhere, and no number of processes nor a stop changes a bit."""

from __future__ import annotations

import pytest

from fedge.errors import ConfigError
from fedge.privacy.account import Release, spent
from fedge.run.brief import Brief
from fedge.run.cohort import draw
from fedge.run.launcher import Options, up
from fedge.run.ledger import Account
from fedge.run.planning import plan
from tests.run.conftest import sha, stage
from tests.run.fakes import brief, budget
from tests.run.test_resume import Stopped, calm_and, resume, stop_at

CENTRAL = "{epsilon: 8, clip: 0.5}"
TREE = "{noise: 2.0, mechanism: ftrl}"
LOCAL = "{noise: 1.0, where: local}"


def private(how=CENTRAL, rounds=3, **options):
    return stage("Alone", rounds, privacy=how, cohort=2, **options)


def test_what_is_spent_is_in_every_record_the_summary_and_the_card(federation, inline):
    run = inline(federation(private()))
    record = run.summary["stages"][0]["privacy"]
    assert record["epsilon"] == pytest.approx(8, abs=0.1)
    assert record["epsilon"] <= 8
    assert (record["where"], record["sampling"]) == ("central", 0.5)
    release = Release(record["noise"], 0.5)
    for line in run.metrics:
        if line["round"] is not None:
            assert line["epsilon"] == pytest.approx(spent([(release, line["round"] + 1)], 1e-5))
            assert line["delta"] == 1e-5
    card = (run.folder / "model" / "README.md").read_text()
    assert f"epsilon {record['epsilon']:.3f} at delta 1e-05" in card


@pytest.mark.slow
def test_privacy_changes_no_byte_that_is_planned(federation):
    path = federation(private())
    shown = ("method", "variant", "bytes_up", "bytes_down", "chosen")

    def rows(*changes):
        return [{key: row[key] for key in shown} for row in plan(path, changes, say=lambda line: None)]

    bare = rows("stages.0.privacy=null")
    assert rows() == bare
    assert rows(f"stages.0.privacy={TREE}") == bare
    assert rows(f"stages.0.privacy={LOCAL}") == bare


@pytest.mark.parametrize("how", [CENTRAL, TREE, pytest.param("{noise: 2, adaptive: 50%}", marks=pytest.mark.slow)])
def test_a_stop_changes_no_bit_of_what_was_noised(how, federation, inline, tmp_path):
    path = federation(private(how, 4), availability=0.9)
    calm, _ = calm_and(tmp_path, inline, path)
    with pytest.raises(Stopped):
        inline(path, say=stop_at("round 2/4"))
    assert sha(resume(inline, tmp_path)) == calm


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("how", [CENTRAL, LOCAL])
def test_processes_leave_what_inline_does(how, federation, inline, tmp_path):
    path = federation(private(how))
    alone = inline(path)
    for slots in (1, 3):
        runs = tmp_path / f"slots-{slots}"
        several = up(path, (), Options(runs=runs, slots=slots, best_effort=True), lambda line: None)
        assert sha(several) == sha(alone)


def test_a_method_of_the_user_s_own_is_refused_when_it_is_made(federation, inline):
    with pytest.raises(ConfigError, match="several turns"):
        inline(federation(stage("Chats", 1, privacy=CENTRAL)))


def test_cohorts_are_drawn_as_the_accounts_take_them():
    names = [f"d{n}" for n in range(10)]
    accounts = [Account(name, budget(), 5) for name in names]

    def drawn(told, number, here=10):
        return draw(told, accounts[:here], number, names)

    told = brief(cohort=3, sampling="poisson")
    sizes = [len(drawn(told, number)) for number in range(2000)]
    assert sum(sizes) / 2000 == pytest.approx(3, rel=0.05)
    assert {0, 6} <= set(sizes)
    both = sum({"d0", "d1"} <= set(drawn(told, number)) for number in range(2000))
    assert both / 2000 == pytest.approx(0.09, abs=0.02)
    assert drawn(told, 7, 5) == tuple(name for name in drawn(told, 7) if name in names[:5])
    turns = brief(cohort=3, sampling="passes")
    for begun in range(0, 40, 4):  # four rounds in which each has one turn
        assert sorted(name for number in range(begun, begun + 4) for name in drawn(turns, number)) == names
    assert Brief.from_json(told.to_json()).sampling == "poisson"
