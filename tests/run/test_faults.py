"""Faults that a file asks for: whom they strike, how they are accounted for, and that they are really done."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fedge.errors import FedgeError
from fedge.run import inject
from fedge.run.checkpoint import Checkpoint
from fedge.run.events import Lost
from fedge.run.faults import Fault, Faults, away, losing, slowed, total
from fedge.run.inject import Injection, Struck, fill_memory, full_disk
from fedge.run.states import save_state
from fedge.spec.faults import KINDS, FaultSpec
from fedge.wire.weather import Weather
from tests.run.conftest import stage
from tests.run.fakes import Play, Sum, brief, coordinator
from tests.run.test_processes import calm, command, events, only_run  # noqa: F401


def spec(kind="crash", devices=("d1",), stages=(0,), rounds=((1, 99),), probability=1.0, turn=None, amount=0.0):
    return FaultSpec(kind, tuple(devices), tuple(stages), rounds, probability, turn, amount)


# -- whom they strike --------------------------------------------------------------------------------------------------


def test_a_schedule_names_device_stage_and_rounds():
    faults = Faults([spec(rounds=((2, 2), (4, 5)))], 1, 0)
    struck = [round for round in range(7) if faults.strike("d1", round, 0, 1)]
    assert struck == [1, 3, 4], "rounds count from 1 in the file and from 0 here"
    assert not faults.strike("d2", 1, 0, 1)
    assert not Faults([spec()], 1, 1).strike("d1", 1, 0, 1)
    assert Faults([spec(rounds=None)], 1, 0).strike("d1", 1000, 0, 1)


def test_chance_is_drawn_by_names_alone():
    def drawn(seed, stage=0, probability=0.3):
        faults = Faults(
            [spec(devices=[f"d{i}" for i in range(20)], stages=(0, 1), probability=probability)], seed, stage
        )
        return {
            (device, round) for device in range(20) for round in range(99) if faults.strike(f"d{device}", round, 0, 1)
        }

    once = drawn(7)
    assert once == drawn(7)
    assert once != drawn(8)
    assert once != drawn(7, 1)
    assert 0.27 < len(once) / (20 * 99) < 0.33
    assert once < drawn(7, probability=0.6), "what is likelier strikes more of the same"
    assert drawn(7, probability=0.0) == set()
    assert len(drawn(7, probability=1.0)) == 20 * 99


def test_a_fault_strikes_one_turn():
    faults = Faults([spec(devices=("d1",))], 3, 0)
    turns = Counter()
    for round in range(99):
        struck = [turn for turn in range(4) if faults.strike("d1", round, turn, 4)]
        assert len(struck) == 1
        turns.update(struck)
    assert set(turns) == {0, 1, 2, 3}, "any of them"
    third = Faults([spec(turn=3)], 3, 0)
    assert [turn for turn in range(4) if third.strike("d1", 0, turn, 4)] == [2]


def test_what_several_do_together():
    both = (Fault("slow", 2.0), Fault("partition", 30.0), Fault("slow", 3.0), Fault("partition", 5.0))
    assert (slowed(both), away(both), losing(both)) == (6.0, 35.0, None)
    assert losing((*both, Fault("hang"), Fault("crash"))).kind == "hang"
    assert {kind for kind in KINDS if Fault(kind).loses} == set(KINDS) - {"slow", "partition", "clock_jump"}
    counts = [{"slow": {"late": 1}}, {"slow": {"late": 2, "answered": 1}, "crash": {"lost": 1}}]
    assert total(counts) == {"crash": {"lost": 1}, "slow": {"answered": 1, "late": 3}}


# -- what the coordinator makes of them --------------------------------------------------------------------------------


def play(specs, rounds=2, events=None, **about):
    told = about.pop("told", None) or brief(rounds=rounds)
    of = coordinator(told, faults=Faults(specs, 1, 0), **about)
    return Play(of, faults=dict(events or {})).stage()


def test_a_lost_device_is_back_in_the_next_round_with_what_it_had_picked():
    found = play([spec(rounds=((1, 1),))], events={("d1", 0, 0): Lost("d1", "fault", "crash", detail="crash: x")})
    log = found.of.state["log"]
    assert [line for line in log if line[2] == "d1"] == [[0, 0, "d1", "fault"], [1, 0, "d1", 1]]
    account = found.of.accounts["d1"]
    assert (account.losses, account.restarts, account.banned) == (1, 0, set())
    assert account.faults == {"crash": {"lost": 1}}
    [told] = [note for note in found.notes if note["event"] == "fault"]
    assert {"device": "d1", "kind": "crash", "turn": 0, "ended": "lost", "detail": "crash: x"}.items() <= told.items()
    assert [note["cause"] for note in found.notes if note["event"] == "lost"] == ["fault"]


def test_slow_work_and_held_frames_cost_emulated_time():
    plain = play([], rounds=1).of
    slow = play([spec("slow", amount=3.0)], rounds=1).of
    held = play([spec("partition", amount=40.0)], rounds=1).of
    compute = 2.0  # d1 does 1e9 operations at 0.5e9 a second
    assert slow.accounts["d1"].virtual_s - plain.accounts["d1"].virtual_s == pytest.approx(2 * compute, rel=0.01)
    assert slow.accounts["d1"].faults == {"slow": {"answered": 1}}
    assert held.accounts["d1"].free_at - plain.accounts["d1"].free_at == pytest.approx(40.0)
    assert held.accounts["d1"].virtual_s == plain.accounts["d1"].virtual_s, "it has nothing to do meanwhile"
    assert [a.free_at for n, a in held.accounts.items() if n != "d1"] == [
        a.free_at for n, a in plain.accounts.items() if n != "d1"
    ]


def test_an_answer_that_a_fault_made_late_is_told_as_late():
    of = play([spec("partition", amount=40.0)], told=brief(rounds=1, deadline=20.0)).of
    assert of.accounts["d1"].faults == {"partition": {"late": 1}}
    assert of.accounts["d1"].lost["cause"] == "deadline"
    kept = play([spec("partition", amount=40.0)], told=brief(Sum(keep=True), rounds=1, deadline=20.0)).of
    assert kept.accounts["d1"].faults == {"partition": {"late": 1}}
    assert set(kept.kept) == {"d1"}


def test_a_device_that_dies_of_the_host_meets_its_fault_again():
    from fedge.run.events import Died

    found = play([spec("slow", amount=3.0)], rounds=1, events={("d1", 0, 0): Died("d1", "killed by signal 9")})
    assert found.of.accounts["d1"].faults == {"slow": {"answered": 1}}
    assert found.of.accounts["d1"].free_at == play([spec("slow", amount=3.0)], rounds=1).of.accounts["d1"].free_at


def test_counts_go_through_a_checkpoint(tmp_path):
    of = play([spec("slow", amount=3.0)], rounds=1).of
    one = Checkpoint()
    one.note(of)
    one.save(tmp_path)
    again = coordinator(brief())
    Checkpoint.load(tmp_path).put(again)
    assert again.accounts["d1"].faults == {"slow": {"answered": 1}}


# -- that they are really done -----------------------------------------------------------------------------------------


def test_a_full_disk_refuses_the_download_and_the_state(tmp_path):
    with pytest.raises(Struck, match="a write was refused: File too large"), full_disk():
        save_state({"x": 1}, tmp_path / "one.state")
    injection = Injection([Fault("disk_full").to_json()], Weather(), None, tmp_path)
    with pytest.raises(Struck, match="refused"), injection.around(b"download"):
        pytest.fail("nothing is computed when the download can't be kept")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "after").write_bytes(b"there is room again")
    with pytest.raises(OSError, match="other") as caught, full_disk():
        raise OSError(errno.EIO, "other")
    assert not isinstance(caught.value, Struck)


def test_memory_that_nothing_holds_is_told(monkeypatch):
    monkeypatch.setattr(inject, "BEYOND", 3 << 20)
    with pytest.raises(FedgeError, match="7 MiB were filled, well beyond the memory wall"):
        fill_memory(4 << 20)
    with pytest.raises(Struck, match="no memory wall"):
        Injection([Fault("out_of_memory").to_json()], Weather(), None, Path()).before()


_CLOCKS = """
import time
from fedge.wire import bus, weather
from fedge.run import inject
before = time.time(), time.monotonic(), time.perf_counter(), time.time_ns(), bus.monotonic()
inject.move_clocks({by})
after = time.time(), time.monotonic(), time.perf_counter(), time.time_ns() , bus.monotonic()
scale = (1, 1, 1, 1e9, 1)
print(*(round((b - a) / s / 10) * 10 for a, b, s in zip(before, after, scale)), weather.monotonic is bus.monotonic)
"""


@pytest.mark.parametrize(("by", "told"), [(3600.0, "3600 3600 3600 3600 3600 True"), (-600.0, "-600 0 0 -600 0 True")])
def test_clocks_jump(by, told):
    done = subprocess.run([sys.executable, "-c", _CLOCKS.format(by=by)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == told


def test_the_weather_is_told():
    weather = Weather()
    Injection([Fault("partition", 90.0).to_json(), Fault("corrupt", seed=4).to_json()], weather, None, Path()).before()
    assert 0.0 < weather.held <= inject.CUT
    spoilt = weather.through([b"a", b"b", bytes(8)])
    assert sum(byte.bit_count() for byte in spoilt[2]) == 1
    assert weather.through([b"a", b"b", bytes(8)])[2] == bytes(8), "once"


@pytest.mark.parametrize("kind", ["crash", "hang"])
def test_a_process_ends_or_stops_by_its_own_hand(kind):
    for seed in (0, 1):
        pid = os.fork()
        if not pid:
            one = Injection([replace(Fault(kind), seed=seed).to_json()], Weather(), None, Path())
            one.before()
            one.after()
            os._exit(0)
        _, status = os.waitpid(pid, os.WUNTRACED)
        if kind == "hang":
            assert os.WIFSTOPPED(status)
            os.kill(pid, 9)
            _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == 9


FAULTS = """\
faults:
  - crash:         {devices: phone-00, rounds: 1-2}
  - hang:          {devices: phone-01, rounds: 2, stage: 0}
  - slow:          {devices: phone-02, factor: 6, rounds: 1-2}
  - partition:     {devices: phone-03, for: 90s, rounds: 2, stage: 0}
  - corrupt:       {devices: phone-04, rounds: 2}
  - out_of_memory: {devices: phone-05, rounds: 2, stage: 0}
  - disk_full:     {devices: phone-06, rounds: 1, stage: 0}
  - clock_jump:    {devices: phone-07, rounds: 2, by: 2h}
"""
ENDS = {
    "clock_jump": {"answered": 1},
    "corrupt": {"lost": 1},
    "crash": {"lost": 2},
    "disk_full": {"lost": 1},
    "hang": {"lost": 1},
    "out_of_memory": {"lost": 1},
    "partition": {"late": 1},
    "slow": {"answered": 2},
}


def faulty(federation, *stages):
    path = federation(*stages, count=9, heartbeat=12, restart=9)  # a busy host must not lose more
    path.write_text(path.read_text() + FAULTS)
    return path


def test_faults_inline_are_in_the_summary_and_the_report(federation, inline, tmp_path):
    from fedge.report.page import write_report

    run = inline(faulty(federation, stage("Remembers", 3, deadline="20s")))
    assert run.summary["stages"][0]["faults"] == ENDS
    lost = {device["name"]: device["lost"] and device["lost"]["cause"] for device in run.summary["devices"]}
    assert lost["phone-00"] == lost["phone-06"] == "fault"
    assert next(d for d in run.summary["devices"] if d["name"] == "phone-02")["faults"] == {"slow": {"answered": 2}}
    page = write_report(run.folder).read_text()
    assert "Faults that the file asks for" in page
    assert "out of memory" in page


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_faults_really_done_come_to_what_inline_says(federation, inline, command, tmp_path):  # noqa: F811
    path = faulty(federation, stage("Remembers", 3, deadline="20s"), stage("Chats", 2))
    expected = calm(inline, path, tmp_path)
    code, out, err = command("up", path, "--runs", tmp_path / "runs", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["model_sha256"] == expected
    assert found["stages"][0]["faults"] == ENDS
    told = {event["kind"]: event for event in events(only_run(tmp_path), "fault") if event["ended"] == "lost"}
    assert told["crash"]["detail"] == "crash: killed by signal 9"
    assert "no sign of life for 12 s" in told["hang"]["detail"]
    assert "do not have the hash that was announced" in told["corrupt"]["detail"]
    assert "memory" in told["out_of_memory"]["detail"]
    assert told["disk_full"]["detail"] == "disk full: a write was refused: File too large"
    memory = next(e for e in events(only_run(tmp_path), "lost") if e["phase"] == "out_of_memory")
    assert memory["peak"] >= 0.9 * memory["cap"]


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_faults_with_fewer_processes_than_devices(federation, inline, command, tmp_path):  # noqa: F811
    path = faulty(federation, stage("Chats", 2, deadline="20s"))
    expected = calm(inline, path, tmp_path)
    told = ("--set", "emulation.processes=2", "--slots", 2)
    code, out, err = command("up", path, *told, "--runs", tmp_path / "runs", "--json")
    assert code == 0, err
    assert json.loads(out)["model_sha256"] == expected
