"""Watching a run: what devices are at, how often it is looked at, and what its file holds."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from fedge.errors import FedgeError
from fedge.report.snapshot import PHASES, STATES, Passing, Snapshot
from fedge.run import watch as module
from fedge.run.events import Lost
from fedge.run.folder import RunFolder, keep_beside
from fedge.run.watch import Watch
from tests.run.conftest import stage
from tests.run.fakes import Play, Sum, brief, coordinator


class Silent:
    """An engine of which only the outside is looked at."""

    def memory(self):
        return {"d0": 1234}

    def open(self, now):
        pass

    def reach(self, now):
        pass

    def sending(self):
        return {"d1"}


@pytest.fixture
def folder(tmp_path):
    return RunFolder.new("watched", tmp_path)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_who_computes_waits_and_is_lost_is_told_at_every_moment():
    of = coordinator(brief(Sum(turns=2), rounds=1), slots=2, devices=5)
    play = Play(of, faults={("d3", 0, 1): Lost("d3", "deadline")})
    seen = Counter()
    handle = of.handle

    def looking(event):
        out = handle(event)
        doing = {name: of.doing(name) for name in of.accounts}
        assert set(doing.values()) <= set(STATES)
        assert sum(state == "computing" for state in doing.values()) <= 2
        seen.update(doing.items())
        return out

    of.handle = looking
    play.run(of.seek_all(), lambda: of.settled)
    assert {of.doing(name) for name in of.accounts} == {"waiting"}
    of.open_stage()
    play.rounds(1)
    assert seen["d3", "lost"]
    assert not seen["d0", "lost"]
    assert seen["d0", "picking"] < seen["d4", "picking"]
    assert {of.doing(name) for name in of.accounts} == {"waiting"}, "what a round lost is back in the next"


def test_a_snapshot_is_made_when_it_is_due_and_not_before(folder, clock):
    seen = []
    watch = Watch(folder, "watched", [4], lambda: clock.now, seen.append)
    watch.enter("preparing")
    for _ in range(100):
        watch.look()
        clock.now += 0.01
    assert len(seen) == 1 + 3


def test_looking_takes_a_small_share_of_the_time(folder, clock):
    seen = []

    def slow(snapshot):
        seen.append(snapshot)
        clock.now += 0.1

    watch = Watch(folder, "watched", [4], lambda: clock.now, slow)
    began = clock.now
    while clock.now < began + 60:
        watch.look()
        clock.now += 0.01
    assert len(seen) * 0.1 <= 60 * 0.04  # the file and the eye, two hundredths each
    assert len(seen) > 5


def test_a_stage_as_it_goes(folder, clock):
    told = brief(Sum(), rounds=3)
    of = coordinator(told, slots=1)
    seen = []
    watch = Watch(folder, "watched", [3, 2], lambda: clock.now, seen.append)
    watch.enter_stage(told, of)
    watch.enter_rounds(Silent())
    play = Play(of)
    play.run(of.seek_all(), lambda: of.settled)
    of.open_stage()
    instructions = of.open_round()
    clock.now += 1
    watch.look()
    first = seen[-1]
    assert (first.phase, first.stage, first.stages, first.round, first.rounds) == ("rounds", told.stage, 2, 1, 3)
    assert first.left_s is None
    assert first.curve == ()
    assert (first.count("computing"), first.count("sending")) == (1, 0)
    assert {device.name: device.memory for device in first.devices}["d0"] == 1234
    play.run(instructions, lambda: not of.round_open)
    of.close_round()
    clock.now += 9
    watch.round_done({"accuracy": 0.5, "loss": 1.0})
    clock.now += 2
    watch.look()
    second = seen[-1]
    assert (second.round, second.measure, second.curve) == (2, "accuracy", (0.5,))
    assert second.left_s == pytest.approx(4 * 10 - 2)  # two rounds of this stage and two of the next
    assert second.devices[0].bytes_up > 0
    assert Snapshot.from_json(json.loads((folder.path / "progress.json").read_text())) == second


def test_who_sends_is_not_said_to_compute(folder, clock):
    told = brief(Sum(), rounds=1)
    of = coordinator(told, slots=3, devices=3)
    seen = []
    watch = Watch(folder, "watched", [1], lambda: clock.now, seen.append)
    watch.enter_stage(told, of)
    watch.enter_rounds(Silent())
    play = Play(of)
    play.run(of.seek_all(), lambda: of.settled)
    of.open_stage()
    of.open_round()
    clock.now += 1
    watch.look()
    assert [device.state for device in seen[-1].devices] == ["computing", "sending", "computing"]


def test_a_resumed_stage_has_the_curve_that_it_had(folder, clock):
    for line in (
        {"stage_index": 0, "device": None, "accuracy": 0.1},
        {"stage_index": 1, "device": None, "accuracy": 0.2},
        {"stage_index": 1, "device": "d0", "accuracy": 0.9},
        {"stage_index": 1, "device": None, "accuracy": 0.3},
    ):
        folder.append("metrics.jsonl", line)
    told = brief(Sum(), rounds=5, index=1)
    of = coordinator(told)
    of.round = 2
    seen = []
    Watch(folder, "watched", [1, 5], lambda: clock.now, seen.append).enter_stage(told, of)
    assert seen[-1].curve == (0.2, 0.3)
    assert seen[-1].round == 3


def test_a_disk_that_is_full_stops_nobody(tmp_path, monkeypatch):
    keep_beside(tmp_path / "x.json", {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    keep_beside(tmp_path / "x.json", {"a": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_run_is_seen_from_its_beginning_to_its_end(federation, tmp_path):
    from fedge.run.launcher import Options, up

    seen, said = [], []
    path = federation(stage("head", 2))
    run = up(path, (), Options(runs=tmp_path / "runs", inline=True), said.append, seen.append)
    phases = [snapshot.phase for snapshot in seen]
    assert sorted(set(phases), key=PHASES.index) == list(PHASES)
    assert (phases[0], phases[-1]) == ("preparing", "ended")
    assert len(seen[-1].curve) == 2
    assert (seen[-1].stage_index, seen[-1].round, seen[-1].left_s) == (0, 2, 0.0)
    kept = json.loads((run.folder / "progress.json").read_text())
    assert Snapshot.from_json(kept) == seen[-1]
    assert (run.folder / "launcher.log").read_text().splitlines() == said
    lasting = [line for line in said if not isinstance(line, Passing)]
    assert [line for line in lasting if line.startswith("stage ")] == lasting[-2:]
    assert any("round 1/2" in line for line in said)


def test_a_run_that_fails_is_seen_to_end(federation, tmp_path):
    from fedge.run.launcher import Options, up

    seen = []
    path = federation(stage("bitfit", 1), memory="1MiB")
    with pytest.raises(FedgeError):
        up(path, (), Options(runs=tmp_path / "runs", inline=True), lambda line: None, seen.append)
    assert [snapshot.phase for snapshot in seen] == ["preparing", "planning", "ended"]
