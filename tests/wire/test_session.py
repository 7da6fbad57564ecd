"""Two sessions joined back to back, and one at the mercy of a stranger."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.errors import ProtocolError
from fedge.wire import blobs
from fedge.wire.blobs import Blob
from fedge.wire.frames import CHUNK, Kind, Message, encode
from fedge.wire.session import FROM_COORDINATOR, FROM_DEVICE, Session


def pair(**options) -> tuple[Session, Session]:
    return Session(FROM_DEVICE, **options), Session(FROM_COORDINATOR, **options)


def pump(*sessions: Session) -> list[list]:
    """Carry frames both ways, one at a time, until nothing moves; what each session took out."""
    taken, moved = [[], []], True
    while moved:
        moved = False
        for here, there, out in ((sessions[0], sessions[1], taken[1]), (sessions[1], sessions[0], taken[0])):
            if (frames := here.give()) is not None:
                moved = True
                if (parcel := there.take([bytes(frame) for frame in frames])) is not None:
                    out.append(parcel)
    return taken


def test_both_ways_at_once_in_order():
    hub, device = pair()
    data = bytes(range(256)) * 4096
    for n in range(3):
        hub.post(Kind.ASK, {"n": n}, Blob(data[n:]))
        device.post(Kind.TELL, {"n": n}, Blob(data[: -n or None]))
        device.post(Kind.EVENT, {"n": n})
    at_hub, at_device = pump(hub, device)
    assert [(p.kind, p.header) for p in at_device] == [(Kind.ASK, {"n": n}) for n in range(3)]
    assert [p.blob for p in at_device] == [data[n:] for n in range(3)]
    assert [(p.kind, p.header["n"]) for p in at_hub] == [(k, n) for n in range(3) for k in (Kind.TELL, Kind.EVENT)]
    assert hub.idle
    assert device.idle


def test_a_blob_of_one_chunk_comes_with_its_message():
    hub, device = pair()
    for data in (b"", b"x", bytes(CHUNK)):
        hub.post(Kind.ASK, {"n": 1}, Blob(data))
        frames = hub.give()
        assert frames is not None
        assert hub.idle
        parcel = device.take(frames)
        assert parcel is not None
        assert (parcel.header, parcel.blob) == ({"n": 1}, data)
        assert device.idle


@pytest.mark.parametrize(
    ("declared", "body", "told"),
    [
        (Blob(b"abc"), b"", "0 bytes instead of 3"),
        (Blob(b"abc"), b"abcd", "4 bytes instead of 3"),
        (Blob(b"abc"), b"abd", "do not have the hash"),
        (Blob(bytes(CHUNK + 1)), b"abc", "none comes with the declaration"),
        (Blob(b""), b"abc", "none comes with the declaration"),
        (None, b"abc", "doesn't declare"),
    ],
)
def test_a_body_that_is_not_the_declared_blob_is_refused(declared, body, told):
    _, device = pair()
    header = {} if declared is None else {"blob": blobs.Outgoing("1", declared).declare()}
    with pytest.raises(ProtocolError, match=told):
        device.take(encode(Message(Kind.ASK, header, body)))


def test_a_beat_overtakes_a_blob():
    hub, device = pair()
    device.post(Kind.TELL, {}, Blob(bytes(4 * CHUNK)))
    hub.take(device.give())
    device.post(Kind.BYE)
    device.post(Kind.BEAT)
    at_hub, _ = pump(hub, device)
    assert [parcel.kind for parcel in at_hub] == [Kind.BEAT, Kind.TELL, Kind.BYE]


def test_one_blob_for_many():
    blob = Blob(bytes(5 * CHUNK))
    for _ in range(3):
        hub, device = pair()
        hub.post(Kind.ASK, {}, blob)
        assert pump(hub, device)[1][0].blob == blob.view


def test_bytes_are_counted_at_the_frame():
    hub, device = pair()
    device.post(Kind.TELL, {"a": 1}, Blob(bytes(CHUNK + 10)))
    device.post(Kind.BYE)
    pump(hub, device)
    assert (device.counts.body_out, hub.counts.body_in, device.counts.body_in) == (CHUNK + 10, CHUNK + 10, 0)
    assert device.counts.header_out == hub.counts.header_in > 0
    assert device.counts.header_in == hub.counts.header_out > 0


def test_an_oversized_blob_is_refused_before_allocation(monkeypatch):
    def refuse(length):
        raise AssertionError(f"{length} bytes allocated")

    hub, device = pair(limit=CHUNK)
    device.post(Kind.TELL, {}, Blob(bytes(CHUNK + 1)))
    monkeypatch.setattr(blobs, "aligned", refuse)
    with pytest.raises(ProtocolError, match=f"at most {CHUNK}"):
        hub.take(device.give())


@pytest.mark.parametrize("kind", [Kind.WELCOME, Kind.PREPARE, Kind.ASK])
def test_a_device_may_not_speak_for_the_coordinator(kind):
    with pytest.raises(ProtocolError, match=kind.name):
        pair()[0].take(encode(Message(kind)))


def test_a_second_message_inside_a_blob_is_refused():
    hub, device = pair()
    device.post(Kind.TELL, {}, Blob(bytes(2 * CHUNK)))
    hub.take(device.give())
    with pytest.raises(ProtocolError, match="before blob '1' was complete"):
        hub.take(encode(Message(Kind.EVENT)))


@pytest.mark.parametrize("header", [{}, {"id": "1", "n": 1}, {"id": None, "n": "x"}])
def test_chunk_and_credit_out_of_the_blue_are_refused(header):
    with pytest.raises(ProtocolError, match="no blob is on its way"):
        pair()[0].take(encode(Message(Kind.CHUNK, header)))
    with pytest.raises(ProtocolError, match="not being sent"):
        pair()[0].take(encode(Message(Kind.CREDIT, header)))


def test_what_cannot_be_sent_is_told_at_once():
    hub, device = pair()
    with pytest.raises(ProtocolError, match="reserved"):
        hub.post(Kind.ASK, {"blob": 1})
    with pytest.raises(ProtocolError, match="session alone"):
        hub.post(Kind.CREDIT)
    with pytest.raises(ProtocolError, match="no blob"):
        device.post(Kind.HELLO, {}, Blob(b"x"))
    with pytest.raises(ProtocolError, match="JSON"):
        hub.post(Kind.ASK, {"a": float("nan")})
    assert hub.idle


LIMIT = 3 * CHUNK
junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 5),
    st.sampled_from(["1", "2", "", "0" * 64, Blob(bytes(2 * CHUNK)).sha256]),
    st.sampled_from([0, 1, CHUNK, 2 * CHUNK, LIMIT, LIMIT + 1, 1 << 50]),
)
declarations = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["1", "2", 1, ""]),
        "length": st.sampled_from([0, 1, 2 * CHUNK, LIMIT, LIMIT + 1, 1 << 50, -1, "1"]),
        "sha256": st.sampled_from([Blob(bytes(2 * CHUNK)).sha256, "0" * 64, ""]),
        "chunks": st.integers(0, 4),
    }
)
fields = st.dictionaries(st.sampled_from(["id", "n", "blob", "x"]), junk | declarations, max_size=4)
good = st.builds(
    Message,
    st.just(Kind.CHUNK),
    st.fixed_dictionaries({"id": st.just("1"), "n": st.integers(0, 3)}),
    st.sampled_from([bytes(CHUNK), b"", bytes(7)]),
)
messages = st.one_of(
    good,
    st.builds(Message, st.sampled_from([kind for kind in Kind if kind is not Kind.CHUNK]), fields),
    st.builds(Message, st.sampled_from([Kind.TELL, Kind.EVENT]), st.fixed_dictionaries({"blob": declarations})),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(messages, max_size=8))
def test_whatever_comes_only_breaches_are_raised_and_the_limit_holds(incoming):
    allocated = []
    real = blobs.aligned

    def watched(length):
        allocated.append(length)
        return real(length)

    hub = Session(FROM_DEVICE, limit=LIMIT, window=2 * CHUNK)
    hub.post(Kind.ASK, {}, Blob(bytes(3 * CHUNK)))
    hub.give()
    blobs.aligned = watched
    try:
        for message in incoming:
            hub.take(encode(message))
            while hub.give() is not None:
                pass
    except ProtocolError:
        pass
    finally:
        blobs.aligned = real
    assert all(length <= LIMIT for length in allocated)
