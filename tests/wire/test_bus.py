"""The sockets, with real processes at the other end, and with peers that keep to no rule."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import zmq

from fedge.errors import FedgeError, ProtocolError
from fedge.wire import blobs
from fedge.wire.blobs import Blob
from fedge.wire.bus import Hub
from fedge.wire.exchange import Breach, Delivery, Gone
from fedge.wire.frames import CHUNK, Kind, Message, encode
from fedge.wire.line import Line
from fedge.wire.session import FROM_COORDINATOR, Session

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0


@pytest.fixture
def hub():
    with Hub(limit=64 << 20) as hub:
        yield hub


@pytest.fixture
def spawn(hub):
    peers = []

    def start(device: str, incarnation: int = 0) -> subprocess.Popen:
        command = [sys.executable, str(Path(__file__).with_name("peer.py")), hub.address, device, str(incarnation)]
        peers.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}))
        return peers[-1]

    yield start
    for peer in peers:
        peer.kill()
        peer.wait()


@pytest.fixture
def raw(hub):
    """A socket that sends whatever it is told under whatever name."""
    context = zmq.Context()
    sockets = []

    def dial(identity: bytes | None = None) -> zmq.Socket:
        socket = context.socket(zmq.DEALER)
        sockets.append(socket)
        socket.setsockopt(zmq.LINGER, 0)
        if identity is not None:
            socket.setsockopt(zmq.IDENTITY, identity)
        socket.connect(hub.address)
        return socket

    yield dial
    for socket in sockets:
        socket.close()
    context.term()


def gather(hub: Hub, number: int, *kinds: Kind) -> list:
    """The next events that are no heartbeats, of the kinds wanted if any are named."""
    events: list = []
    until = time.monotonic() + PATIENCE
    while len(events) < number:
        assert time.monotonic() < until, f"{events} and no more"
        for event in hub.receive(1.0):
            kind = getattr(event, "kind", None)
            if kind is not Kind.BEAT and (not kinds or kind in kinds):
                events.append(event)
    return events


def settle(hub: Hub, seconds: float = 0.3) -> list:
    """Every event of a while, heartbeats too."""
    events, until = [], time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        events += hub.receive(left)
    return events


def noise(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def test_20_mb_both_ways(hub, spawn):
    spawn("phone-00")
    [hello] = gather(hub, 1)
    assert (hello.device, hello.incarnation, hello.kind, hello.header) == ("phone-00", 0, Kind.HELLO, {"pid": True})
    data = noise(20_000_000)
    hub.post("phone-00", Kind.ASK, {"round": 1}, Blob(data))
    [tell] = gather(hub, 1)
    assert (tell.kind, tell.header, tell.blob == data) == (Kind.TELL, {"round": 1}, True)
    counts = hub.counts("phone-00")
    assert (counts.body_in, counts.body_out) == (len(data), len(data))
    assert 0 < counts.header_in < 100_000
    hub.post("phone-00", Kind.BYE)
    assert gather(hub, 1)[0].kind is Kind.BYE


def test_one_blob_to_five(hub, spawn):
    devices = [f"phone-{n:02}" for n in range(5)]
    for device in devices:
        spawn(device)
    gather(hub, 5, Kind.HELLO)
    assert hub.devices == devices
    blob = Blob(noise(3_000_001))
    for device in devices:
        hub.post(device, Kind.ASK, {"to": device}, blob)
        hub.post(device, Kind.ASK, {"to": device, "then": True})
    tells = gather(hub, 10)
    for device in devices:
        first, second = [tell for tell in tells if tell.device == device]
        assert first.header == {"to": device}
        assert first.blob == blob.view
        assert second.header == {"to": device, "then": True}
        assert second.blob is None


def test_heartbeats_come_while_nothing_else_does(hub, spawn):
    spawn("phone-00")
    gather(hub, 1)
    beats = settle(hub, 0.6)
    assert 2 <= len(beats) <= 7
    assert {beat.kind for beat in beats} == {Kind.BEAT}
    assert beats[-1].header == {"busy": 0.0}


def test_a_heartbeat_tells_of_a_busy_work_thread(hub):
    with Line(hub.address, "phone-00", 0, beat=0.05) as line:
        line.post(Kind.HELLO)
        hub.receive(PATIENCE)
        assert line.receive(0) == []
        beats = settle(hub, 0.4)
        assert beats[-1].header["busy"] > 0.2


def test_a_new_incarnation_takes_over(hub, raw):
    old, new = raw(b"phone-00.0"), raw(b"phone-00.1")
    old.send_multipart(encode(Message(Kind.HELLO)))
    gather(hub, 1)
    new.send_multipart(encode(Message(Kind.HELLO)))
    assert gather(hub, 1)[0].incarnation == 1
    old.send_multipart(encode(Message(Kind.TELL, {"late": True})))
    new.send_multipart(encode(Message(Kind.TELL, {"late": False})))
    assert [event.header for event in settle(hub)] == [{"late": False}]
    assert hub.counts("phone-00").ignored == 1
    hub.post("phone-00", Kind.WELCOME)
    assert new.poll(2000)
    assert not old.poll(100)


def test_garbage_is_told_once_and_others_go_on(hub, spawn, raw):
    spawn("phone-00")
    gather(hub, 1)
    stranger, thief = raw(), raw(b"phone-01.0")
    thief.send_multipart(encode(Message(Kind.HELLO)))
    assert gather(hub, 1)[0].device == "phone-01"
    data = noise(5_000_000)
    hub.post("phone-00", Kind.ASK, {}, Blob(data))
    for n in range(300):
        stranger.send_multipart([noise(n)] * (n % 5 + 1))
        thief.send_multipart([b"FEDG\x01\x06", b'{"blob":{}}', b""])
    events = [*gather(hub, 3), *settle(hub, 0.5)]
    breaches = [event for event in events if isinstance(event, Breach)]
    assert {breach.incarnation for breach in breaches} == {None, 0}
    assert len(breaches) == 2
    assert [event.blob == data for event in events if getattr(event, "kind", None) is Kind.TELL] == [True]
    assert hub.devices == ["phone-00"]


def test_a_frame_beyond_every_size_harms_nobody(hub, spawn, raw):
    spawn("phone-00")
    gather(hub, 1)
    raw(b"phone-01.0").send_multipart([bytes(30 << 20)])
    hub.post("phone-00", Kind.ASK, {"x": 1})
    assert gather(hub, 1)[0].header == {"x": 1}
    assert hub.devices == ["phone-00"]


def test_an_oversized_blob_is_refused_before_allocation(hub, raw, monkeypatch):
    def refuse(length):
        raise AssertionError(f"{length} bytes allocated")

    monkeypatch.setattr(blobs, "aligned", refuse)
    peer = raw(b"phone-00.0")
    peer.send_multipart(encode(Message(Kind.HELLO)))
    length = 1 << 40
    declared = {"id": "1", "length": length, "sha256": "0" * 64, "chunks": length // CHUNK}
    peer.send_multipart(encode(Message(Kind.TELL, {"blob": declared})))
    _, breach = gather(hub, 2)
    assert isinstance(breach, Breach)
    assert str(breach.error).startswith("phone-00: blob '1': 1099511627776 bytes announced")


def test_the_hub_sends_no_more_than_it_has_credit_for(hub, raw):
    peer = raw(b"phone-00.0")
    peer.send_multipart(encode(Message(Kind.HELLO)))
    gather(hub, 1)
    hub.post("phone-00", Kind.ASK, {}, Blob(noise(40 * CHUNK)))
    peer.recv_multipart()
    assert not peer.poll(100)
    for grant in (3, 5):
        peer.send_multipart(encode(Message(Kind.CREDIT, {"id": "1", "n": grant})))
        settle(hub, 0.2)
        for _ in range(grant):
            assert peer.poll(1000)
            peer.recv_multipart()
        assert not peer.poll(100)


def test_the_hub_grants_no_more_than_its_window(raw, hub):
    peer = raw(b"phone-00.0")
    peer.send_multipart(encode(Message(Kind.HELLO)))
    session = Session(FROM_COORDINATOR)
    session.post(Kind.TELL, {}, Blob(noise(50 << 20)))
    peer.send_multipart(session.give())
    settle(hub, 0.2)
    session.take(peer.recv_multipart())
    assert not peer.poll(100)
    granted = 0
    while (frames := session.give()) is not None:
        granted += len(frames[2])
    assert granted == blobs.WINDOW


def test_posting_to_nobody_is_told(hub, raw):
    hub.post("phone-00", Kind.ASK)
    assert hub.wait(PATIENCE) == []
    assert hub.receive(0) == [Gone("phone-00", None)]
    peer = raw(b"phone-00.0")
    peer.send_multipart(encode(Message(Kind.HELLO)))
    gather(hub, 1)
    peer.close()
    time.sleep(0.2)
    hub.post("phone-00", Kind.ASK, {}, Blob(bytes(CHUNK)))
    assert hub.receive(PATIENCE) == [Gone("phone-00", 0)]


def test_a_killed_device_leaves_the_others_alone(hub, spawn):
    victim = spawn("phone-00")
    spawn("phone-01")
    gather(hub, 2, Kind.HELLO)
    data = noise(20_000_000)
    for device in ("phone-00", "phone-01"):
        hub.post(device, Kind.ASK, {}, Blob(data))
    victim.kill()
    while (tell := gather(hub, 1, Kind.TELL)[0]).device != "phone-01":
        pass  # the other one may have been quicker than its end
    assert tell.blob == data
    hub.forget("phone-00")
    spawn("phone-00", 1)
    assert gather(hub, 1, Kind.HELLO)[0].incarnation == 1


def test_waiting_beside_other_descriptors(hub, raw):
    reader, writer = os.pipe()
    try:
        start = time.monotonic()
        assert hub.wait(0.1, [reader]) == []
        assert time.monotonic() - start >= 0.1
        os.write(writer, b"x")
        assert hub.wait(PATIENCE, [reader]) == [reader]
        os.read(reader, 1)
        raw(b"phone-00.0").send_multipart(encode(Message(Kind.HELLO)))
        for _ in range(3):  # unread, it stays ready
            start = time.monotonic()
            assert hub.wait(PATIENCE, [reader]) == []
            assert time.monotonic() - start < 5
        assert len(hub.receive(0)) == 1
    finally:
        os.close(reader)
        os.close(writer)


def test_the_folder_is_private_and_goes(hub):
    folder = Path(hub.address.removeprefix("ipc://")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    hub.close()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("tcp://127.0.0.1:5555", "tcp needs keys"),
        ("inproc://x", "absolute path"),
        ("ipc://@abstract", "absolute path"),
        ("ipc:///tmp/" + "x" * 120, "107"),
        ("ipc:///nowhere/at/all", "nowhere"),
    ],
)
def test_addresses_that_are_refused(address, told):
    with pytest.raises(FedgeError, match=told):
        Hub(address)


def test_a_line_refuses_tcp_without_a_key_too():
    with pytest.raises(FedgeError, match="tcp needs keys"):
        Line("tcp://127.0.0.1:5555", "phone-00", 0)


def test_a_line_ends_when_the_coordinator_breaks_the_protocol(hub):
    with Line(hub.address, "phone-00", 0) as line:
        line.post(Kind.HELLO)
        gather(hub, 1)
        hub.post("phone-00", Kind.WELCOME)
        hub.post("phone-00", Kind.TELL)
        [welcome] = line.receive(PATIENCE)
        assert (welcome.device, welcome.kind) == ("phone-00", Kind.WELCOME)
        for _ in range(2):
            with pytest.raises(ProtocolError, match="TELL"):
                line.receive(PATIENCE)
        with pytest.raises(ProtocolError):
            line.post(Kind.BYE)


def test_closing_a_line_lets_what_was_posted_leave(hub):
    data = noise(3 * CHUNK)
    got: list[Delivery] = []
    listener = threading.Thread(target=lambda: got.extend(gather(hub, 2)))
    listener.start()
    with Line(hub.address, "phone-00", 0) as line:
        line.post(Kind.HELLO)
        line.post(Kind.TELL, {}, Blob(data))
    listener.join()
    assert got[1].blob == data


def trickle(length, header):
    return length / (20 * CHUNK)


def late(length, header):
    return 0.8


def test_a_paced_line_takes_its_time_for_blobs_only(hub):
    with Line(hub.address, "phone-00", 0, up=trickle, down=late) as line:
        line.post(Kind.HELLO)
        gather(hub, 1)
        start = time.monotonic()
        line.post(Kind.TELL, {}, Blob(noise(6 * CHUNK)))
        gather(hub, 1)
        assert 0.25 < time.monotonic() - start < 5
        start = time.monotonic()
        hub.post("phone-00", Kind.WELCOME)
        hub.post("phone-00", Kind.ASK, {}, Blob(noise(10)))
        settle(hub, 0.2)
        assert line.receive(PATIENCE)[0].kind is Kind.WELCOME
        assert time.monotonic() - start < 0.7
        assert line.receive(PATIENCE)[0].blob == noise(10)
        assert time.monotonic() - start > 0.79


def test_a_line_that_is_cut_holds_everything_back_and_then_goes_on(hub):
    with Line(hub.address, "phone-00", 0, beat=0.05) as line:
        line.post(Kind.HELLO, {})
        gather(hub, 1)
        line.weather.cut(0.6)
        began = time.monotonic()
        settle(hub, 0.1)  # what had left before
        line.post(Kind.TELL, {"round": 1}, Blob(b"answer"))
        hub.post("phone-00", Kind.ASK, {"round": 2}, Blob(b"question"))
        assert settle(hub, 0.3) == [], "no heartbeat either"
        [tell] = gather(hub, 1)
        assert (tell.kind, bytes(tell.blob)) == (Kind.TELL, b"answer")
        assert time.monotonic() - began >= 0.6
        assert line.receive(PATIENCE)[0].header == {"round": 2}


@pytest.mark.parametrize("length", [10, CHUNK + 1])
def test_a_spoilt_frame_is_refused_and_the_device_comes_back_as_another(hub, length):
    with Line(hub.address, "phone-00", 0) as line:
        line.post(Kind.HELLO, {})
        gather(hub, 1)
        line.weather.spoil("7")
        line.post(Kind.TELL, {}, Blob(noise(length)))
        [breach] = gather(hub, 1)
        assert isinstance(breach, Breach)
        assert "do not have the hash that was announced" in str(breach.error)
    with Line(hub.address, "phone-00", 1) as line:
        line.post(Kind.HELLO, {})
        line.post(Kind.TELL, {}, Blob(noise(length)))
        assert gather(hub, 2)[1].blob == noise(length)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_importing_opens_nothing():
    code = (
        "import threading, os, fedge.wire.bus, sys;"
        "assert len(os.listdir('/proc/self/task')) == 1 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
