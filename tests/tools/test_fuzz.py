"""The fuzzer finds what is planted, plays it again from its number, and finds nothing in a few hundred real cases."""

from __future__ import annotations

import json
import time
from random import Random

import pytest

from fedge.errors import ProtocolError
from tools.fuzz import campaign
from tools.fuzz.__main__ import main
from tools.fuzz.mutate import changed, damaged, rejson, relined


class Planted:
    """A target that breaks on some of what it is given."""

    name = "planted"

    def __init__(self):
        self.counted = 0
        self.given = b""

    def case(self, draw):
        self.counted += 1
        self.given = damaged(b"hello, world", draw)
        if len(self.given) > 14:
            raise KeyError("planted")
        if len(self.given) < 4:
            raise ProtocolError("too short")
        return "read"

    def input(self):
        return self.given

    def close(self):
        pass


def test_what_is_planted_is_found_noted_and_played_again(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    out = campaign.run(Planted(), 300, 5, ledger, lambda line: None)
    assert out.findings
    assert out.met["ProtocolError"] > 0
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert lines == out.findings
    assert lines[0]["error"] == "KeyError: 'planted'"
    again = campaign.run(Planted(), 1, 5, None, lambda line: None, only=lines[0]["case"])
    assert again.findings == lines[:1]
    assert campaign.run(Planted(), 300, 5, None, lambda line: None).findings == out.findings
    figures = {line["name"]: line for line in campaign.figures("planted", out)}
    assert figures["fuzz.planted.findings"]["holds"] is False


@pytest.mark.parametrize("work", [True, False])
def test_what_hangs_is_a_finding_at_work_or_waiting(work, monkeypatch):
    monkeypatch.setattr(campaign, "SLOW" if work else "PATIENCE", 0.05)
    target = Planted()

    def case(draw):
        target.counted += 1
        if not work:
            time.sleep(5)
        while work:
            pass

    target.case = case
    out = campaign.run(target, 1, 0, None, lambda line: None)
    assert out.findings[0]["error"] == f"Hung: more than 0.05 s{' at work' if work else ''}"


def test_a_case_that_a_busy_host_holds_up_is_no_finding(monkeypatch):
    monkeypatch.setattr(campaign, "SLOW", 0.05)
    target = Planted()

    def case(draw):
        target.counted += 1
        time.sleep(0.2)
        return "read"

    target.case = case
    out = campaign.run(target, 1, 0, None, lambda line: None)
    assert not out.findings
    assert out.slowest < 0.05


def test_mutators_repeat_and_change_something():
    for number in range(200):
        first, second = Random(number), Random(number)
        assert damaged(b"abcdef" * 9, first, b"xyz") == damaged(b"abcdef" * 9, second, b"xyz")
        assert relined("a: 1\nb: {c: 2}\n", first, ["d: 3"]) == relined("a: 1\nb: {c: 2}\n", second, ["d: 3"])
    texts = {rejson(b'{"a": [1, {"b": "c"}], "d": null}', Random(number)) for number in range(200)}
    assert len(texts) > 60
    assert len({json.dumps(changed([1, 2, 3], Random(number))) for number in range(100)}) > 20


@pytest.mark.parametrize("target", ["yaml"])
def test_a_few_cases_of_what_needs_no_run(target, capsys):
    assert main([target, "--count", "60", "--seed", "3", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert [line["name"] for line in figures][:2] == [f"fuzz.{target}.damaged", f"fuzz.{target}.findings"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["frames", "socket", "checkpoints"])
def test_some_cases_of_what_needs_one(target, capsys):
    assert main([target, "--count", "600", "--seed", "3"]) == 0
    capsys.readouterr()
