"""Costs traced ahead are those that a trace gives; whoever asks for what couldn't be traced is told why."""

import os
import time

import psutil
import pytest

from fedge.core.cost import Cost
from fedge.errors import MethodError
from fedge.methods.customize.bitfit import BitFit
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.fedkseed import FedKSeed
from fedge.plan import costs, scratch
from fedge.plan.costs import Wanted, cached, trace_ahead
from fedge.plan.trace import Setting, Tracer
from fedge.testing.tiny import tiny

METHODS = [BitFit(steps=2, batch=4), FedAvg(steps=2, batch=4)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "costs"


def setting():
    found = tiny("image")
    return Setting(found.model, found.task, found.rows(8, "b"))


def wanted(progress=lambda name: None, methods=METHODS):
    return [
        Wanted(method, list(method.variants()), [f"{type(method).__name__} {n}" for n in range(9)], setting(), progress)
        for method in methods
    ]


def test_costs_traced_ahead_are_those_of_traces(monkeypatch):
    told = []
    stages = wanted(told.append)
    direct = [[Tracer(s.method, s.setting).trace(variant) for variant in s.variants] for s in stages]
    trace_ahead(stages, 2)
    assert sorted(told) == sorted(name for s in stages for name, _ in zip(s.names, s.variants, strict=False))
    monkeypatch.setattr(Tracer, "trace", lambda *_: pytest.fail("it is in the cache"))
    assert [[cached(Tracer(s.method, s.setting), variant) for variant in s.variants] for s in stages] == direct
    trace_ahead(stages, 2)
    assert len(told) == sum(len(s.variants) for s in stages)


def test_variants_that_differ_in_steps_are_told_from_one_trace():
    method = BitFit(steps=8, batch=4)
    few = [BitFit(steps=steps, batch=4) for steps in (8, 4, 2)]
    stage = Wanted(method, [*few, BitFit(steps=8, batch=4, depth=0.5)], ["a", "b", "c", "d"], setting(), print)
    assert costs._missing(stage) == [[0, 1, 2], [3]]


@pytest.mark.parametrize("why", ["one core", "no folder"])
def test_nothing_is_traced_ahead_where_it_would_be_of_no_use(why, cache, monkeypatch, tmp_path):
    if why == "no folder":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("FEDGE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("no process was needed"))
    trace_ahead(wanted(), 1 if why == "one core" else 2)
    assert not list(cache.glob("*"))


def test_whoever_asks_for_what_cannot_be_traced_is_told(monkeypatch):
    def refuse(tracer, variant):
        raise MethodError("this one can't be traced")

    monkeypatch.setattr(Tracer, "trace", refuse)
    stages = wanted()
    trace_ahead(stages, 2)
    with pytest.raises(MethodError, match="this one"):
        cached(Tracer(stages[0].method, stages[0].setting), stages[0].variants[0])


def test_a_process_that_dies_costs_time_alone(monkeypatch):
    monkeypatch.setattr(Tracer, "trace", lambda *_: os.kill(os.getpid(), 9))
    stages = wanted()
    trace_ahead(stages, 2)
    monkeypatch.undo()
    assert isinstance(cached(Tracer(stages[0].method, stages[0].setting), stages[0].variants[0]), Cost)


def test_no_process_is_left_when_the_planning_is_interrupted(monkeypatch, tmp_path):
    def run(*_):
        (tmp_path / f"pid-{os.getpid()}").write_text("")
        time.sleep(60)

    def real():
        return [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]

    def interrupted(name):
        within(lambda: len(real()) == 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(scratch, "_run", run)
    variants = [FedKSeed(steps=2, batch=batch, seeds=8) for batch in (4, 3, 2, 1)]  # run for real, not traced
    ours = Wanted(variants[0], variants, ["a", "b", "c", "d"], setting(), interrupted)
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(KeyboardInterrupt):
        trace_ahead([ours], 2)
    assert {child.pid for child in psutil.Process().children()} <= before
    within(lambda: not any(psutil.pid_exists(pid) for pid in real()))


def within(holds, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
