"""The launcher's end of the zygote, held against programs that stand in for one."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from fedge.run.nursery import Nursery, ZygoteGone

_BEGIN = """\
import json, os, sys, time
commands, events = int(sys.argv[3]), int(sys.argv[4])
def tell(**event): os.write(events, json.dumps(event).encode() + b"\\n")
"""
_ANSWERS = """\
for line in os.fdopen(commands):
    if json.loads(line)["do"] == "ping": tell(**{"is": "here"})
    if json.loads(line)["do"] == "stage": tell(**{"is": "ready", "of": "stage"})
"""


@pytest.fixture
def nursery(tmp_path, monkeypatch):
    """A nursery whose zygote is a program of the test's."""
    made = []

    def start(program: str, patience: float = 30.0) -> Nursery:
        (tmp_path / "zygote.py").write_text(_BEGIN + program)
        stand_in = tmp_path / "python"
        stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/zygote.py "$@"\n')
        stand_in.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(stand_in))
            made.append(Nursery(tmp_path / "zygote.log", patience))
        return made[-1]

    yield start
    for one in made:
        one.close()


def until_gone(nursery: Nursery, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while nursery.alive and time.monotonic() < end:
        nursery.read()
        time.sleep(0.01)
    return not nursery.alive


def test_a_zygote_that_answers_is_left_alone(nursery):
    one = nursery(_ANSWERS, patience=1.5)
    one.command("stage")
    one.await_ready("stage")
    assert not until_gone(one, 3.0)


def test_a_frozen_zygote_is_killed(nursery):
    one = nursery(_ANSWERS, patience=0.5)
    one.command("stage")
    one.await_ready("stage")
    os.kill(one.process.pid, signal.SIGSTOP)
    assert until_gone(one, 60.0)
    assert one.process.wait() == -signal.SIGKILL


def test_a_zygote_that_does_not_get_ready_is_killed(nursery):
    one = nursery("time.sleep(600)")
    with pytest.raises(ZygoteGone, match="died while preparing"):
        one.await_ready("imports", seconds=0.2)
    assert one.process.wait() == -signal.SIGKILL


def test_one_that_is_frozen_while_it_gets_ready_is_not_waited_for_long(nursery):
    one = nursery("tell(**{'is': 'forked'}); time.sleep(600)", patience=0.5)
    while not one.read():
        time.sleep(0.01)
    os.kill(one.process.pid, signal.SIGSTOP)
    with pytest.raises(ZygoteGone, match="died while preparing"):
        one.await_ready("imports", seconds=300.0)


def test_one_that_dies_while_it_is_told_much(nursery):
    one = nursery("time.sleep(0.5)")
    one.command("stage", brief="x" * (1 << 20))
    assert not one.alive


def test_much_may_be_said_on_both_sides_at_once(nursery):
    one = nursery("for i in range(3000): tell(**{'is': 'forked', 'pid': i, 'text': 'x' * 100})\n" + _ANSWERS)
    for number in range(30):
        one.command("fork", rows=list(range(3000)), number=number)
    one.command("stage")
    seen = []
    while not seen or seen[-1]["is"] != "ready":
        seen += one.read()
    assert [event["pid"] for event in seen[:-1]] == list(range(3000))
