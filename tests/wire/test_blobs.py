"""Blobs in chunks: they arrive whole, or the breach is told."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.errors import ProtocolError
from fedge.wire import blobs
from fedge.wire.blobs import Blob, Declaration, Incoming, Outgoing, aligned, chunks_of
from fedge.wire.frames import CHUNK

LIMIT = 8 * CHUNK


def transfer(data: bytes, window: int = blobs.WINDOW) -> tuple[bytearray, int]:
    """Carry a blob across; also the largest number of chunks that were under way."""
    outgoing = Outgoing("1", Blob(data))
    incoming = Incoming(Declaration.read(outgoing.declare(), len(data)), window)
    flight, most = [], 0
    while not incoming.done:
        if credit := incoming.credit():
            outgoing.grant(credit)
        while (chunk := outgoing.next()) is not None:
            flight.append(chunk)
        most = max(most, len(flight))
        first = flight.pop(0)
        incoming.take(first.header, first.body)
    assert outgoing.done
    return incoming.finish(), most


@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 5 * CHUNK + 7])
def test_every_length_arrives(length):
    data = bytes(i * 7 % 251 for i in range(length))
    assert transfer(data)[0] == data


@settings(max_examples=20)
@given(chunks=st.integers(1, 40), window=st.integers(0, 12 * CHUNK))
def test_never_more_than_the_window_is_under_way(chunks, window):
    assert transfer(bytes(chunks * CHUNK - 3), window)[1] <= max(1, window // CHUNK)


def test_chunks_are_views_of_one_buffer():
    data = bytearray(2 * CHUNK)
    blob = Blob(data)
    piece = Outgoing("1", blob)
    piece.grant(2)
    piece.next()
    data[CHUNK] = 9
    assert piece.next().body[0] == 9
    assert blob.view.readonly


def test_a_blob_views_wider_numbers_as_bytes():
    wide = memoryview(bytes(16)).cast("d")
    assert Blob(wide).length == 16


@pytest.mark.parametrize("length", [1 << 10, 100_003, 1 << 20, (1 << 24) + 5])
def test_a_buffer_begins_aligned(length):
    buffer = aligned(length)
    assert len(buffer) == length
    assert ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % 64 == 0


def declaration(**changes):
    value = {"id": "1", "length": 3 * CHUNK, "sha256": "0" * 64, "chunks": 3}
    value.update(changes)
    return {key: item for key, item in value.items() if item is not ...}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "1",
        declaration(id=...),
        declaration(more=1),
        declaration(id=7),
        declaration(id=""),
        declaration(id="x" * 65),
        declaration(length=-1),
        declaration(length=1.0),
        declaration(length=True),
        declaration(length="3"),
        declaration(sha256="0" * 63),
        declaration(sha256="G" * 64),
        declaration(sha256="0" * 64 + "\n"),
        declaration(sha256=None),
        declaration(chunks=2),
        declaration(chunks=3.0),
        declaration(length=0, chunks=1),
    ],
)
def test_a_false_declaration_is_refused(value):
    with pytest.raises(ProtocolError):
        Declaration.read(value, LIMIT)


def test_the_limit_is_checked_before_anything_else_of_its_size():
    with pytest.raises(ProtocolError, match=f"at most {LIMIT}"):
        Declaration.read(declaration(length=1 << 60, chunks=chunks_of(1 << 60)), LIMIT)


def incoming(window: int = LIMIT) -> Incoming:
    arriving = Incoming(Declaration.read(Outgoing("1", Blob(bytes(3 * CHUNK))).declare(), LIMIT), window)
    arriving.credit()
    return arriving


@pytest.mark.parametrize(
    ("header", "length", "told"),
    [
        ({"id": "2", "n": 1}, CHUNK, "'1' is on its way"),
        ({"n": 1}, CHUNK, "is on its way"),
        ({"id": ["1"], "n": 1}, CHUNK, "is on its way"),
        ({"id": "1", "n": 0}, CHUNK, "twice"),
        ({"id": "1", "n": 2}, CHUNK, "1 was due"),
        ({"id": "1", "n": 3}, CHUNK, "no chunk 3"),
        ({"id": "1", "n": -1}, CHUNK, "no chunk -1"),
        ({"id": "1", "n": True}, CHUNK, "no chunk"),
        ({"id": "1"}, CHUNK, "no chunk"),
        ({"id": "1", "n": 1}, CHUNK - 1, "instead of"),
        ({"id": "1", "n": 1}, 0, "instead of"),
    ],
)
def test_a_false_chunk_is_refused(header, length, told):
    arriving = incoming()
    arriving.take({"id": "1", "n": 0}, bytes(CHUNK))
    with pytest.raises(ProtocolError, match=told):
        arriving.take(header, bytes(length))


def test_a_chunk_without_credit_is_refused():
    arriving = incoming(window=CHUNK)
    arriving.take({"id": "1", "n": 0}, bytes(CHUNK))
    with pytest.raises(ProtocolError, match="without credit"):
        arriving.take({"id": "1", "n": 1}, bytes(CHUNK))


def test_a_changed_byte_is_found():
    arriving = incoming()
    for n in range(3):
        arriving.take({"id": "1", "n": n}, bytes(CHUNK - 1) + bytes([n == 2]))
    with pytest.raises(ProtocolError, match="hash"):
        arriving.finish()


def test_half_a_blob_is_not_given_out():
    with pytest.raises(ProtocolError, match="not complete"):
        incoming().finish()


@pytest.mark.parametrize("n", [0, -1, 4, "1", None, 1.0, True])
def test_a_false_credit_is_refused(n):
    with pytest.raises(ProtocolError, match="credit"):
        Outgoing("1", Blob(bytes(3 * CHUNK))).grant(n)
