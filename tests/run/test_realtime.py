"""The real clock: the same bits as the virtual one, at the wall clock's pace; what falls behind is told by name."""

import json

import pytest

from fedge.errors import ConfigError, LimitError
from fedge.run.launcher import Options, up
from tests.run.conftest import sha
from tests.run.fakes import Play, Sum, brief, coordinator

PACED = """\
name: small
seed: 3
model: {{name: vit-nano, options: {{hidden: 16, layers: 2, mlp: 32}}}}
data: {{dataset: digits, partition: iid, test: 5%, rows: 200}}
devices:
  near: {{profile: pi-4b-4g, {speed}, network: {{down: 4Mbit/s, up: 2Mbit/s, latency: 20ms}}}}
  far:  {{profile: pi-4b-4g, {speed},
          network: {{down: 1Mbit/s, up: 0.5Mbit/s, latency: 90ms, jitter: 20ms, loss: 5%}}}}
evaluate: {{every: 1, rows: 16, baselines: false}}
emulation: {{clock: {clock}, slowdown: {slowdown}}}
stages:
  - customize: {{method: fedavg, rounds: 2, steps: 2, batch: 4{more}}}
"""


SLOW, MANY = "compute: 60MFLOP/s, memory_bandwidth: 60MB/s", "count: 50"


@pytest.fixture
def paced(tmp_path):
    def run(clock="real", slowdown="auto", more="", speed=SLOW, **options):
        path = tmp_path / "small.yaml"
        path.write_text(PACED.format(clock=clock, slowdown=slowdown, more=more, speed=speed))
        said = []
        run = up(path, (), Options(runs=tmp_path / "runs", **options), said.append)
        return run, said

    return run


def turns(run):
    return [line for line in run.metrics if line["device"] and line["round"] is not None]


@pytest.mark.slow
def test_the_real_clock_gives_the_virtual_ones_bits_at_its_pace(paced, nothing_left):
    real, said = paced()
    virtual, _ = paced("virtual")
    assert sha(real) == sha(virtual)
    assert real.summary["stages"][0]["virtual_s"] == virtual.summary["stages"][0]["virtual_s"]
    assert real.summary["limits"]["network"] == "paced"
    slow = real.summary["slowdown"]
    assert any(line.startswith("real clock: ") for line in said)
    for mine, theirs in zip(turns(real), turns(virtual), strict=True):
        assert mine["arrival"] == theirs["arrival"]
        told = (mine["arrival"] - mine["began"]) * slow
        # never early; how late it may be is the host's affair, and is told
        assert mine["wall_s"] >= told - 0.01
        assert mine["wall_s"] == pytest.approx(told + mine["behind_s"], abs=1.0)
    assert "wall_s" not in turns(virtual)[0]


@pytest.mark.slow
def test_what_comes_after_a_deadline_is_not_waited_for(paced):
    late = ", deadline: 500ms, quorum: 1, pick: richest"
    virtual, _ = paced("virtual", more=late)
    real, _ = paced(slowdown="auto", more=late)
    assert sha(real) == sha(virtual)
    lost = [json.loads(line)["device"] for line in (real.folder / "events.jsonl").open() if '"deadline"' in line]
    assert lost == ["far", "far"]
    # its answer was hurried as soon as it was too late, which is long before it would have been there
    first = turns(real)[0]
    assert first["device"] == "far"
    assert first["wall_s"] < (first["arrival"] - first["began"]) * real.summary["slowdown"]


def test_a_host_too_small_is_told_before_anything_starts(paced, nothing_left):
    with pytest.raises(LimitError, match="the real clock can't keep up: stage customize"):
        paced(slowdown=1, speed=MANY)


def test_inline_has_no_real_clock(paced):
    with pytest.raises(ConfigError, match=r"emulation\.clock: --inline knows the virtual clock only"):
        paced(inline=True)


def test_nobody_waits_for_those_who_come_after_enough_answers():
    play = Play(coordinator(brief(Sum(want=2), rounds=1), devices=4, slots=4)).stage()
    assert len(play.hurried) == 2
    everyone = Play(coordinator(brief(Sum(), rounds=1), devices=4, slots=4)).stage()
    assert everyone.hurried == []
