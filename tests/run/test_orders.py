"""Faults by hand: orders from another process, what the coordinator makes of them, and real processes that obey."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from fedge.errors import FedgeError, MissingError
from fedge.run.events import Died, Lost, Paused, Resumed, Send
from fedge.run.folder import RunFolder
from fedge.run.orders import Order, Orders, give
from fedge.run.processes import Processes
from fedge.wire.blobs import Blob
from fedge.wire.frames import Kind
from tests.run.conftest import stage
from tests.run.fakes import Play, brief, coordinator
from tests.run.test_processes import command, events, only_run  # noqa: F401

# -- from one process to the other -------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    (tmp_path / "scratch").mkdir()
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_json("launcher.json", {"pid": 1, "started": 1, "scratch": str(tmp_path / "scratch")})
    return folder, Orders(tmp_path / "scratch")


def obey(orders, **said):
    """Answer the first order that comes, in a thread."""

    def wait():
        end = time.monotonic() + 20.0
        while not (found := orders.take()) and time.monotonic() < end:
            time.sleep(0.01)
        taken.extend(found)
        orders.answer(found[0], **said)

    taken = []
    thread = threading.Thread(target=wait)
    thread.start()
    return taken, thread


def test_an_order_is_given_and_answered(run):
    folder, orders = run
    orders.open()
    taken, thread = obey(orders, done="killed, process 7")
    assert give(folder, "kill", "d1", ["d1", "d2"], 20.0) == "killed, process 7"
    thread.join()
    assert [(order.word, order.device) for order in taken] == [("kill", "d1")]
    assert not orders.take()
    taken, thread = obey(orders, refused="it is not paused")
    with pytest.raises(FedgeError, match="d2: it is not paused"):
        give(folder, "unpause", "d2", ["d1", "d2"], 20.0)
    thread.join()
    orders.close()
    with pytest.raises(FedgeError, match="no processes of devices now"):
        give(folder, "kill", "d1", ["d1"], 1.0)


def test_orders_that_can_not_be_given(run):
    folder, orders = run
    with pytest.raises(MissingError, match=r"has no device 'd11' \(did you mean 'd1'"):
        give(folder, "kill", "d11", ["d1", "x2"], 1.0)
    orders.open()
    with pytest.raises(FedgeError, match=r"did not answer within 0\.1 s"):
        give(folder, "kill", "d1", ["d1"], 0.1)
    assert not orders.take(), "it is withdrawn"
    (folder.path / "launcher.json").write_text("{")
    with pytest.raises(FedgeError, match="no processes of devices now"):
        give(folder, "kill", "d1", ["d1"], 1.0)


def test_an_order_that_comes_too_late_is_refused(run):
    folder, orders = run
    orders.open()
    threading.Timer(0.2, orders.close).start()
    with pytest.raises(FedgeError, match="the stage has ended"):
        give(folder, "kill", "d1", ["d1"], 20.0)


# -- the coordinator ---------------------------------------------------------------------------------------------------


def test_a_paused_device_takes_part_in_no_round():
    of = coordinator(brief(rounds=4))
    play = Play(of).stage(1)
    of.handle(Paused("d1"))
    play.rounds(2)
    of.handle(Resumed("d1"))
    play.rounds(1)
    log = of.state["log"]
    assert sorted({line[0] for line in log if line[2] == "d1"}) == [0, 3]
    away = [note for note in play.notes if note["event"] == "unavailable"]
    assert [(note["round"], note["device"], note["detail"]) for note in away] == [
        (1, "d1", "paused by hand"),
        (2, "d1", "paused by hand"),
    ]
    assert of.accounts["d1"].losses == 0


@pytest.mark.parametrize("slots", [1, 4])
def test_a_device_paused_at_work_or_before_is_lost_for_the_round(slots):
    of = coordinator(brief(rounds=2), slots=slots)
    play = Play(of).stage(0)
    play.do(of.open_round())
    assert of.doing("d3") == ("computing" if slots == 4 else "waiting")
    play.do(of.handle(Paused("d3")))
    play.waiting = [event for event in play.waiting if event.device != "d3"]
    play.run([], lambda: not of.round_open and of.settled)
    of.close_round()
    play.rounds(1)
    assert [line for line in of.state["log"] if line[2] == "d3"] == [[0, 0, "d3", "fault"]]
    assert of.accounts["d3"].faults == {"pause": {"lost": 1}}
    assert [note["kind"] for note in play.notes if note["event"] == "fault"] == ["pause"]


def test_a_device_killed_while_it_picks_picks_again():
    of = coordinator(brief(rounds=1))
    of.seek_all()
    again = of.handle(Lost("d1", "fault", "kill", detail="kill: killed by signal 9"))
    assert [instruction.device for instruction in again] == ["d1"]
    assert not of.settled
    assert of.accounts["d1"].faults == {"kill": {"lost": 1}}


# -- really ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("meanwhile", ["answers", "is asked again", "the zygote dies"])
def test_a_device_killed_by_hand_is_lost_whatever_happens_before_its_end_is_told(limit, meanwhile):
    place = SimpleNamespace(budget=SimpleNamespace(memory=1), log=Path("log"))
    parts = [Mock(name=name) for name in ("wall", "nursery", "hub")]
    parts[0].open.return_value.killed_for_memory.return_value = False
    devices = Processes(
        dict.fromkeys(("a", "b"), place),
        *parts,
        run="run",
        limit=limit,
        heartbeat=60.0,
        incarnations={},
        revive=Mock(),
        opened=Mock(),
    )
    question = Send("a", 1, 0, Blob(b"q"))
    devices.do(question)
    (host,) = devices._hosts.values()
    about = {"host": host.name, "incarnation": host.incarnation}
    with subprocess.Popen(["sleep", "60"]) as child:
        devices._told({"is": "forked", "pid": child.pid, **about})
        heard = SimpleNamespace(device=host.name, incarnation=host.incarnation, blob=Blob(b"a"))
        devices._heard(SimpleNamespace(**vars(heard), kind=Kind.HELLO, header={}))
        devices._obey(Order("kill", "a", Path("order")), Mock(paused=set()))
        header = {"round": 1, "turn": 0, "done": True, "stateful": None, "peak": 0, "noted": {}}
        if meanwhile == "answers":
            devices._heard(SimpleNamespace(**vars(heard), kind=Kind.TELL, header=header))
        elif meanwhile == "is asked again":
            devices.do(question)
        status = os.waitpid(child.pid, 0)[1]
        child.returncode = -9
    if meanwhile == "the zygote dies":
        devices._orphaned()
    else:
        devices._told({"is": "ended", "status": status, "phase": 0, **about})
    lost = [event for event in devices._events if isinstance(event, Lost)]
    assert [(event.device, event.cause, event.phase) for event in lost] == [("a", "fault", "kill")]
    assert not [event for event in devices._events if isinstance(event, Died)]


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("processes", ["auto", 2])
def test_devices_are_killed_and_paused_in_a_detached_run(processes, federation, command, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))  # no leftover of ours
    path = federation(stage("Remembers", 400), heartbeat=20, restart=9)
    runs = tmp_path / "runs"
    told = ("--set", f"emulation.processes={processes}")
    code, _, err = command("up", "-d", path, *told, "--slots", 2, "--runs", runs, "--json")
    assert code == 0, err

    def order(*words):
        code, out, err = command(*words, "--runs", runs, "--json", "--timeout", 60)
        return code, (json.loads(out)[words[0]][0]["done"] if code == 0 else err)

    def lost(kind):
        return [event for event in events(only_run(tmp_path), "fault") if event["kind"] == kind]

    def rounds_of(device):
        lines = RunFolder(only_run(tmp_path)).read_lines("metrics.jsonl")
        return {line["round"] for line in lines if line.get("device") == device}

    def until(true):
        end = time.monotonic() + 90.0
        while not true():
            assert time.monotonic() < end
            time.sleep(0.1)

    until(lambda: len(rounds_of("phone-01")) > 2)
    code, said = order("pause", "phone-01")
    assert code == 0, said
    assert said.startswith("paused")
    assert order("pause", "phone-01") == (1, "fedge: phone-01: it is paused already\n")
    assert order("unpause", "phone-02") == (1, "fedge: phone-02: it is not paused\n")
    code, err = order("kill", "phone-11")
    assert code != 0
    assert "no device 'phone-11' (did you mean 'phone-01'?)" in err
    had, others = rounds_of("phone-01"), len(rounds_of("phone-00"))
    until(lambda: len(rounds_of("phone-00")) > others + 5)
    assert len(rounds_of("phone-01") - had) <= 1, "rounds go on without it"
    code, said = order("kill", "phone-02")
    assert code == 0, said
    until(lambda: len(lost("kill")) == 1)
    code, said = order("unpause", "phone-01")
    assert code == 0, said
    had, back = rounds_of("phone-01"), max(rounds_of("phone-00"))
    until(lambda: max(rounds_of("phone-01")) > back and max(rounds_of("phone-02")) > back)
    code, _, err = command("down", "--runs", runs, "--timeout", 60)
    assert code == 0, err
    assert not events(only_run(tmp_path), "died")
