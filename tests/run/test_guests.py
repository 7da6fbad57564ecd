"""Remote devices at the coordinator: real sockets and keys, devices that lie, and what is counted."""

from __future__ import annotations

import time

import pytest

import fedge
from fedge.run.events import Answered, Died, End, Lost, Picked, Seek, Send
from fedge.run.guests import Entry, Guests
from fedge.wire.blobs import Blob
from fedge.wire.bus import Hub
from fedge.wire.curve import new_pair
from fedge.wire.frames import Kind
from fedge.wire.keys import DeviceKey, Keyring
from fedge.wire.line import Line

PATIENCE = 10.0
CHOICE = {"index": 0, "reason": "it fits", "runner_up": None, "refused": {}}


class Bench:
    """A coordinator's side, and devices that say what they are told to."""

    def __init__(self, folder, wait=30.0, heartbeat=30.0):
        self.ring = Keyring(folder / "keys", new_pair)
        for device in ("a", "b", "z"):
            self.ring.make(device)
        self.hub = Hub("tcp://127.0.0.1:*", keys=self.ring, rate=100.0)
        self.said, self.notes, self.lines = [], [], []
        self.guests = Guests(
            self.hub,
            ["a", "b"],
            "run",
            wait=wait,
            heartbeat=heartbeat,
            invite="fedge join",
            say=self.said.append,
            note=self.notes.append,
        )
        self.incarnation = 0
        self.unread = []

    def line(self, device="a", token="t", stage=-1, hello=True):
        self.incarnation += 1
        line = Line(self.hub.address, device, self.incarnation, key=DeviceKey.read(self.ring.file(device)), beat=0.1)
        line.start()
        self.lines.append(line)
        if hello:
            line.post(Kind.HELLO, {"fedge": fedge.__version__, "token": token, "stage": stage})
        return line

    def events(self, count=1, seconds=PATIENCE):
        found, until = self.unread, time.monotonic() + seconds
        self.unread = []
        while len(found) < count and time.monotonic() < until:
            found += self.guests.wait()
        return found

    def hear(self, line, kind, holds=None):
        """The next message of a kind, whose header holds a key where one is named."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            self.unread += self.guests.poll()
            for delivery in line.receive(0.02):
                if delivery.kind is kind and (holds is None or holds in delivery.header):
                    return delivery
        raise AssertionError(f"no {kind.name} came")

    def enter(self, offers=2, limit=1 << 20):
        parts = {"base": Blob(b"weights"), "data": Blob(b"rows")}
        self.guests.enter(0, {d: Entry({"rows": 3}, parts) for d in ("a", "b")}, offers, limit)

    def staged(self, device="a"):
        """A device that has joined, taken up the stage, and picked."""
        line = self.line(device)
        self.hear(line, Kind.WELCOME)
        line.post(Kind.EVENT, {"staged": 0})
        self.guests.do(Seek(device))
        self.hear(line, Kind.PREPARE)
        line.post(Kind.READY, {"choice": CHOICE})
        assert [type(event) for event in self.events()] == [Picked]
        return line

    def asked(self, device="a", turn=0):
        line = self.staged(device)
        self.guests.do(Send(device, 3, turn, Blob(b"question")))
        assert self.hear(line, Kind.ASK).blob == b"question"
        return line


def tell(line, round=3, turn=0, data=b"answer", **changes):
    header = {"round": round, "turn": turn, "done": True, "stateful": None, "peak": 7, "noted": {}}
    line.post(Kind.TELL, {**header, **changes}, None if data is None else Blob(data))


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    made.enter()
    yield made
    for line in made.lines:
        line.close(linger=0)
    made.hub.close(linger=0)


def test_a_device_is_sent_what_it_lacks_and_answers(bench):
    line = bench.line()
    assert bench.hear(line, Kind.WELCOME).header == {"run": "run"}
    line.post(Kind.EVENT, {"stage": 0, "need": ["base"]})
    part = bench.hear(line, Kind.EVENT, "part")
    assert (part.header, part.blob) == ({"part": "base"}, b"weights")
    line.post(Kind.EVENT, {"staged": 0})
    bench.guests.do(Seek("a", (1,)))
    assert bench.hear(line, Kind.PREPARE).header == {"banned": [1], "pinned": None, "stateful": None, "n": 1}
    line.post(Kind.READY, {"choice": CHOICE})
    [picked] = bench.events()
    assert picked.choice.index == 0
    bench.guests.do(Send("a", 3, 0, Blob(b"question"), 0, 5))
    asked = bench.hear(line, Kind.ASK)
    assert asked.header == {"round": 3, "turn": 0, "pinned": 0, "stateful": 5, "kept": 5, "n": 2, "faults": []}
    tell(line, noted={"counts": {"loss": 0.5}})
    [answered] = bench.events()
    assert (answered.data, answered.peak, answered.noted["counts"]) == (b"answer", 7, {"loss": 0.5})
    assert bench.guests.record()["devices"]["a"]["refused"] == {}


LIES = {
    "round": (lambda line: tell(line, round=2), "round", "answered round 2, turn 0, and was asked 3, 0"),
    "turn": (lambda line: tell(line, turn=1), "round", "answered round 3, turn 1, and was asked 3, 0"),
    "text": (lambda line: tell(line, round="3"), "shape", "'round' is no whole number"),
    "negative": (lambda line: tell(line, peak=-1), "shape", "'peak' is no whole number"),
    "done": (lambda line: tell(line, done="yes"), "shape", "'done' is neither"),
    "empty": (lambda line: tell(line, data=None), "shape", "its answer is empty"),
    "noted": (lambda line: tell(line, noted={"counts": {"loss": "x"}}), "finite", "'noted.counts.loss' is no finite"),
    "picked": (lambda line: line.post(Kind.READY, {"choice": CHOICE}), "replay", "it picked, and was not asked to"),
    "needs": (lambda line: line.post(Kind.EVENT, {"stage": 0, "need": ["secrets"]}), "shape", "needs what its stage"),
    "fails": (lambda line: line.post(Kind.FAIL, {"cause": "boredom"}), "shape", "failed of nothing"),
    "phase": (lambda line: line.post(Kind.FAIL, {"cause": "memory", "phase": "x"}), "shape", "in a phase that"),
    "too large": (lambda line: tell(line, data=bytes((1 << 20) + 1)), "protocol", "1048577 bytes announced"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_device_that_lies_is_dropped_told_why_and_counted(bench, lie):
    say, kind, told = LIES[lie]
    line = bench.asked()
    other = bench.asked("b")
    say(line)
    [lost] = bench.events()
    assert isinstance(lost, Lost)
    assert (lost.device, lost.cause) == ("a", "protocol")
    assert told in lost.detail
    assert told in bench.hear(line, Kind.FAIL).header["message"]
    assert bench.guests.record()["devices"]["a"]["refused"] == {kind: 1}
    assert [note["kind"] for note in bench.notes if note["event"] == "refused"] == [kind]
    tell(other)  # the run goes on
    assert isinstance(bench.events()[0], Answered)
    again = bench.line()
    assert told in bench.hear(again, Kind.FAIL).header["message"]


def test_an_answer_that_comes_twice_is_refused(bench):
    line = bench.asked()
    tell(line)
    assert isinstance(bench.events()[0], Answered)
    tell(line)
    [lost] = bench.events()
    assert "answered what it was not asked" in lost.detail
    assert bench.guests.record()["devices"]["a"]["refused"] == {"replay": 1}


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({**CHOICE, "index": 2}, "offer 2 of 2"),
        ({**CHOICE, "index": 1}, "told not to"),
        ({**CHOICE, "index": True}, "no whole number"),
        ({**CHOICE, "reason": None}, "no text"),
        ({**CHOICE, "refused": {"x": "y"}}, "can't be read"),
        ([], "no choice"),
    ],
)
def test_a_choice_that_is_none(bench, choice, told):
    line = bench.line()
    bench.hear(line, Kind.WELCOME)
    line.post(Kind.EVENT, {"staged": 0})
    bench.guests.do(Seek("a", (1,)))
    bench.hear(line, Kind.PREPARE)
    line.post(Kind.READY, {"choice": choice})
    [lost] = bench.events()
    assert told in lost.detail


def test_an_answer_whose_numbers_or_shapes_are_wrong_is_told_so_by_the_coordinator(bench):
    """What the payload holds is looked at where it is decoded; the device hears of it all the same."""
    line = bench.asked()
    tell(line)
    bench.events()
    bench.guests.do(End("a", "its answer's delta 'w' holds numbers that are not finite"))
    assert "not finite" in bench.hear(line, Kind.FAIL).header["message"]


def test_one_that_comes_back_is_asked_again_and_one_that_was_started_anew_begins_again(bench):
    line = bench.asked()
    line.close()
    back = bench.line(stage=0)
    assert bench.hear(back, Kind.ASK).header["n"] == 2
    back.close()
    anew = bench.line(token="other")
    [died] = bench.events()
    assert isinstance(died, Died)
    bench.guests.do(Seek("a", (), 0))
    anew.post(Kind.EVENT, {"staged": 0})
    assert bench.hear(anew, Kind.PREPARE).header["pinned"] == 0
    assert bench.guests.record()["devices"]["a"]["joined"] == 3


def test_another_version_is_told_so(bench):
    line = bench.line(hello=False)
    line.post(Kind.HELLO, {"fedge": "0.0.0", "token": "t"})
    assert "it is fedge 0.0.0" in bench.hear(line, Kind.FAIL).header["message"]


def test_a_listed_key_of_a_device_that_the_federation_does_not_have(bench):
    line = bench.line("z")
    assert "no remote device of this federation" in bench.hear(line, Kind.FAIL).header["message"]


def test_who_does_not_come_in_time_is_lost_and_may_join_the_next_stage(tmp_path):
    bench = Bench(tmp_path, wait=0.3)
    bench.enter()
    bench.guests.do(Seek("a"))
    [lost] = bench.events(seconds=3)
    assert (lost.cause, lost.detail) == ("host", "it did not join within 0 s")
    line = bench.line()
    bench.hear(line, Kind.WELCOME)
    bench.guests.enter(1, {"a": Entry({}, {"base": Blob(b"w")})}, 1, 1 << 20)
    assert bench.hear(line, Kind.EVENT).header["stage"] == 1
    line.close(linger=0)
    bench.hub.close(linger=0)


def test_who_falls_silent_is_waited_for_and_then_lost(tmp_path):
    bench = Bench(tmp_path, wait=0.5, heartbeat=0.4)
    bench.enter()
    line = bench.asked()
    line.close(linger=0)
    [lost] = bench.events(seconds=5)
    assert lost.detail.startswith("it did not come back")
    assert any("silent" in said for said in bench.said)
    bench.hub.close(linger=0)


def test_who_leaves_is_lost_at_once(bench):
    line = bench.asked()
    line.post(Kind.BYE)
    [lost] = bench.events()
    assert (lost.cause, lost.detail) == ("host", "left")
    assert bench.hear(line, Kind.BYE).header == {"status": "left"}


def test_who_is_lost_already_and_leaves_is_answered_too(bench):
    line = bench.asked()
    line.post(Kind.FAIL, {"cause": "error", "message": "out of disk"})
    [lost] = bench.events()
    line.post(Kind.BYE)
    assert bench.hear(line, Kind.BYE).header == {"status": "left"}
    assert lost.cause == "host"
    assert bench.guests.poll() == []
