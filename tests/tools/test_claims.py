"""The table of claims: what is stale runs again and nothing else, and what is shown is what was measured."""

import ast
import json

import pytest

from fedge.methods.table import BUILT
from tools.claims import __main__ as tool
from tools.claims import source, stored
from tools.claims.claim import Claim, Seen, chosen, every
from tools.claims.data import Absent, located
from tools.claims.page import PAGE, methods
from tools.claims.show import Row, figures, lines, markdown

STEP = 0.25
RUNS = []


def halves(seed):
    RUNS.append(seed)
    return {"half": _halved(seed), "whole": float(seed)}


def _halved(seed):
    return seed / 2 + STEP


def claim(**changed):
    fields = {"method": "lora", "name": "halves", "says": "half | is less", "paper": "0.5", "data": ()}
    fields |= {"measure": halves, "holds": lambda seen: seen.gap("whole", "half") > 0, "goal": "half < whole"}
    return Claim(**{**fields, "seeds": (1, 2, 6), **changed})


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    """Results of these tests lie in a folder of their own."""
    RUNS.clear()
    monkeypatch.setattr(tool, "find", lambda one: stored.find(one, tmp_path))
    monkeypatch.setattr(tool, "keep", lambda one, result: stored.keep(one, result, tmp_path))


def rows(*claims, again=False, stored=False, quick=False):
    return tool.rows_of(claims, again=again, stored=stored, quick=quick)


def test_what_is_fresh_does_not_run_again(tmp_path):
    (first,) = rows(claim())
    (second,) = rows(claim())
    assert RUNS == [1, 2, 6]
    assert first.result == second.result
    assert second.verdict == "holds"
    assert second.result.figures == {"half": [0.75, 1.25, 3.25], "whole": [1.0, 2.0, 6.0]}
    rows(claim(), again=True)
    assert RUNS == [1, 2, 6] * 2
    assert json.loads((tmp_path / "lora.json").read_text())["halves"]["figures"]["whole"] == [1, 2, 6]


def test_a_verdict_is_taken_anew_from_stored_figures():
    rows(claim())
    (row,) = rows(claim(holds=lambda seen: seen.mean("half") > 10), stored=True)
    assert row.verdict == "does not hold"
    assert RUNS == [1, 2, 6]


def test_only_what_a_claim_rests_on_makes_it_stale(monkeypatch):
    before = source.fingerprint(claim())
    assert source.fingerprint(claim(says="in other words")) == before
    assert source.fingerprint(claim(seeds=(1, 2, 3))) != before
    assert source.fingerprint(claim(method="head")) != before
    trees = {name: source._tree(name) for name in source._closure(frozenset({"fedge.methods.customize.lora"}))}
    assert {"fedge.methods.tuning", "fedge.core.fold", "fedge.models.lora"} <= set(trees)
    assert "fedge.methods.customize.head" not in trees
    mine = source._tree(__name__)

    def changed(old, new):
        tree = ast.parse(ast.unparse(mine).replace(old, new))
        monkeypatch.setattr(source, "_tree", lambda name: tree if name == __name__ else trees.get(name) or real(name))
        return source.fingerprint(claim())

    real = source._tree
    assert changed("seed / 2", "seed / 3") != before
    assert changed("STEP = 0.25", "STEP = 0.5") != before
    assert changed("RUNS.clear()", "RUNS.reverse()") == before


def test_documentation_is_not_source(tmp_path, monkeypatch):
    path = tmp_path / "said.py"
    found = []
    for text in ('"""One."""\ndef f(): "Two."; return 1', "# three\ndef f():\n    return 1", "def f(): return 2"):
        path.write_text(text)
        monkeypatch.setattr(source, "_file", lambda name: path)
        source._tree.cache_clear()
        found.append(ast.dump(source._tree("said")))
    source._tree.cache_clear()
    assert found[0] == found[1] != found[2]


def test_quick_and_stored_say_what_they_left(monkeypatch):
    assert [row.verdict for row in rows(claim(), stored=True)] == ["not run yet"]
    monkeypatch.setattr(tool, "QUICK", -1.0)
    assert [row.verdict for row in rows(claim(), quick=True)] == ["not run yet"]
    assert RUNS == []


def test_data_that_is_not_here_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDGE_SHARED_DATA", str(tmp_path))
    (row,) = rows(claim(data=("ag_news",)))
    assert row.verdict.startswith("not run: the shared data set ag_news is not in")
    assert located("digits") is None
    with pytest.raises(Absent):
        located("sst2")


def test_what_is_shown():
    result = stored.Result("x", {"half": [0.75, 1.25, 3.25], "whole": [1.0, 2.0, 6.0]}, 3.4)
    row = Row(claim(unit="%"), result)
    assert row.ours == "half 175.0 ± 125.0 %; whole 300.0 ± 250.0 %"
    assert next(iter(lines([row]))) == "lora/halves: holds, 3 s"
    assert "| `lora` | half \\| is less | 0.5 |" in list(markdown([row]))[2]
    (line,) = figures([row, Row(claim(), None, "not run yet")])
    assert (line["value"], line["spread"], line["n"], line["holds"]) == (1.75, 2.5, 3, True)
    assert Row(claim(), result, "stale").verdict == "holds (stale)"


def test_means_and_gaps():
    seen = Seen(a=[1.0, 3.0], b=[1.0, 1.0])
    assert (seen.mean("a"), seen.gap("a", "b"), seen.worst("a")) == (2.0, 1.0, 3.0)


def test_claims_are_of_methods_that_are_built():
    for one in every():
        kind, _, key = one.method.partition(":")
        assert one.method in BUILT or one.method == "survey" or (kind == "codec" and key)
        assert len(one.seeds) >= 3
        for word in ("says", "paper", "goal"):
            assert getattr(one, word)
    assert {one.method for one in chosen(["bitfit"])} == {"bitfit"}
    with pytest.raises(ValueError, match="no claim of nothing"):
        chosen(["nothing"])


def test_the_page_has_every_built_method_as_the_catalogue_has_it():
    """Written anew by ``python -m tools.claims.page``; the figures may be older, the methods may not."""
    page = PAGE.read_text()
    missing = [line for line in methods() if line not in page]
    assert not missing
