"""The coordinator's connections without sockets: newcomers, stale ones, strangers and those who break the rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ProtocolError
from fedge.wire import exchange as module
from fedge.wire.blobs import Blob
from fedge.wire.exchange import Breach, Delivery, Exchange, Gone, identified, identify
from fedge.wire.frames import CHUNK, Kind, Message, encode
from fedge.wire.session import Session

HELLO = encode(Message(Kind.HELLO))
JUNK = [b"junk"]


def joined(*names: str) -> Exchange:
    exchange = Exchange(limit=8 * CHUNK)
    for name in names:
        exchange.take(name.encode(), HELLO)
    return exchange


def sent(exchange: Exchange) -> list[bytes]:
    return [identity for identity, _ in exchange.outgoing()]


@pytest.mark.parametrize(("device", "incarnation"), [("phone-00", 0), ("a.b", 12), ("Pi_4", 10**9)])
def test_an_identity_names_its_device(device, incarnation):
    assert identified(identify(device, incarnation)) == (device, incarnation)


@pytest.mark.parametrize("device", ["", "a b", "a/b", "-a", "é", "x" * 201, "a\n"])
def test_a_name_that_is_no_identity(device):
    with pytest.raises(ProtocolError, match="identity"):
        identify(device, 0)


@given(st.binary(max_size=60))
def test_any_identity_can_be_looked_at(identity):
    named = identified(identity)
    assert named is None or identify(*named) == identity


def test_a_device_joins_and_talks():
    exchange = joined("a.0")
    assert exchange.devices == ["a"]
    assert exchange.take(b"a.0", encode(Message(Kind.EVENT, {"x": 1}))) == [Delivery("a", 0, Kind.EVENT, {"x": 1})]
    exchange.post("a", Kind.WELCOME)
    assert sent(exchange) == [b"a.0"]


def test_a_stale_incarnation_is_ignored_and_counted():
    exchange = joined("a.0", "a.1")
    assert exchange.take(b"a.0", encode(Message(Kind.BYE))) == []
    assert exchange.take(b"a.0", HELLO) == []
    assert exchange.take(b"a.0", JUNK) == []
    assert exchange.counts("a").ignored == 3
    exchange.post("a", Kind.WELCOME)
    assert sent(exchange) == [b"a.1"]


def test_a_breach_ends_one_incarnation_only():
    exchange = joined("a.0", "b.0")
    [breach] = exchange.take(b"a.0", JUNK)
    assert isinstance(breach, Breach)
    assert (breach.device, breach.incarnation, breach.error.device) == ("a", 0, "a")
    assert str(breach.error).startswith("a: ")
    assert exchange.take(b"a.0", encode(Message(Kind.EVENT))) == []
    assert exchange.take(b"a.0", HELLO) == []
    assert exchange.take(b"b.0", encode(Message(Kind.EVENT))) != []
    assert exchange.take(b"a.1", HELLO) == [Delivery("a", 1, Kind.HELLO, {})]


def test_a_newcomer_has_to_say_hello():
    exchange = joined("a.0")
    [breach] = exchange.take(b"a.1", encode(Message(Kind.TELL)))
    assert (breach.incarnation, "HELLO" in str(breach.error)) == (1, True)
    assert exchange.take(b"a.1", HELLO) == []
    assert exchange.take(b"a.0", encode(Message(Kind.TELL))) != []  # the live one is not harmed by it


def test_hello_comes_once():
    exchange = joined("a.0")
    [breach] = exchange.take(b"a.0", HELLO)
    assert "twice" in str(breach.error)


def test_a_stranger_is_told_once():
    exchange = joined("a.0")
    [breach] = exchange.take(b"\x00\x01\x02", HELLO)
    assert (breach.device, breach.incarnation) == ("000102", None)
    assert exchange.take(b"\x00\x01\x02", HELLO) == []


def test_strangers_are_not_remembered_without_end(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 3)
    exchange = Exchange()
    for n in range(10):
        assert len(exchange.take(bytes([n]), JUNK)) == 1
    assert len(exchange.take(bytes([0]), JUNK)) == 1
    assert exchange.take(bytes([0]), JUNK) == []


def test_posting_to_nobody_is_told():
    exchange = joined("a.0")
    exchange.post("b", Kind.ASK)
    exchange.lost(b"a.0")
    exchange.lost(b"a.0")
    exchange.lost(b"nonsense")
    assert exchange.news() == [Gone("b", None), Gone("a", 0)]
    assert exchange.news() == []
    assert exchange.devices == []


def test_a_loss_in_the_midst_of_sending():
    exchange = joined("a.0", "b.0")
    for device in "aab":
        exchange.post(device, Kind.ASK)
    reached = []
    for identity, _ in exchange.outgoing():
        reached.append(identity)
        if identity == b"a.0":
            exchange.lost(identity)
    assert reached == [b"a.0", b"b.0"]


def test_who_is_sending():
    exchange, device = joined("a.0", "b.0"), Session(frozenset(Kind), limit=8 * CHUNK)
    device.post(Kind.TELL, {}, Blob(bytearray(2 * CHUNK)))
    assert exchange.sending == set()
    exchange.take(b"a.0", device.give())
    assert exchange.sending == {"a"}
    arrived = []
    while not arrived:
        for _, frames in exchange.outgoing():
            device.take(frames)
        while (frames := device.give()) is not None:
            arrived += exchange.take(b"a.0", frames)
    assert exchange.sending == set()


def test_forgetting_drops_what_was_under_way():
    exchange = joined("a.0")
    exchange.post("a", Kind.ASK, {}, Blob(bytes(CHUNK)))
    exchange.forget("a")
    assert sent(exchange) == []
    assert exchange.take(b"a.0", encode(Message(Kind.BEAT))) == []
    exchange.take(b"a.1", HELLO)
    assert sent(exchange) == []


def test_counts_go_on_over_incarnations():
    exchange = joined("a.0", "a.1")
    assert exchange.counts("a").header_in == 2 * (len(HELLO[0]) + len(HELLO[1]))
    assert exchange.counts("nobody").header_in == 0


@given(
    st.lists(st.tuples(st.sampled_from([b"a.0", b"a.1", b"b.0", b"x"]), st.lists(st.binary(max_size=20), max_size=4)))
)
def test_nothing_that_comes_raises(arrivals):
    exchange = joined("a.0")
    for identity, frames in arrivals:
        for event in exchange.take(identity, frames):
            assert isinstance(event, Breach)
