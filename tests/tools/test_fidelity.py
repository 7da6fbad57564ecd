"""The figures of fidelity: what they make of what was measured, and that the instruments measure what they say."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext

import pytest

from fedge.emulation.link import Link
from fedge.run.paced import ends
from tools.fidelity import __main__ as program
from tools.fidelity.seen import against, line, says


def test_a_figure_says_what_was_asked_and_what_was_seen():
    found = against("rate", 8.0, [7.9, 8.4, 8.1], "Mbit/s", within=2.0)
    assert (found["value"], found["unit"], found["holds"], found["n"]) == (1.25, "%", True, 3)
    assert (found["asked"], found["measured"], found["spread"]) == (8.0, 8.1, 0.5)
    assert line(found) == ("rate: asked 8, measured 8.1 Mbit/s: +1.25 %, spread 0.5 Mbit/s, n 3  (within 2 %: holds)")
    late = against("trip", 20.0, [22.0], "ms", within=1.0, relative=False)
    assert (late["value"], late["unit"], late["holds"]) == (2.0, "ms", False)
    assert line(late).endswith("+2 ms, n 1  (within 1 ms: MISSED)")
    assert line(says("equal", True, "abc")) == "equal: abc, n 1  (holds: holds)"


def test_a_missed_goal_is_told_by_the_exit_code(monkeypatch, capsys):
    class Module:
        @staticmethod
        def measure(quick):
            yield against("a", 1.0, [1.0 if quick else 2.0], "x", within=1.0)

    monkeypatch.setattr(program.importlib, "import_module", lambda name: Module)
    monkeypatch.setattr(program, "shielded", lambda: nullcontext(False))
    monkeypatch.setattr(sys, "argv", ["fidelity", "cpu", "--json", "--quick"])
    assert program.main() == 0
    told = json.loads(capsys.readouterr().out)["figures"]
    assert [(figure["subject"], figure["holds"]) for figure in told] == [("cpu", True)]
    monkeypatch.setattr(sys, "argv", ["fidelity", "cpu"])
    assert program.main() == 1
    monkeypatch.setattr(sys, "argv", ["fidelity", "nonsense"])
    with pytest.raises(SystemExit):
        program.main()
    assert "there is no subject 'nonsense'" in capsys.readouterr().err


def test_every_subject_has_its_module():
    for module, about in program.SUBJECTS.values():
        assert callable(program.importlib.import_module(module).measure), about


def test_a_paced_message_takes_no_less_than_its_link():
    with ends(Link(8e5, 4e5, latency=0.05)) as pair:
        down, up = pair.exchange(10_000, 5_000)
    assert 0.125 <= down < 5
    assert 0.125 <= up < 5
