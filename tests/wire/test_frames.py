"""Messages as frames: what is written can be read, and nothing else gets through."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ProtocolError
from fedge.wire.frames import CHUNK, DEPTH, HEADER, MAGIC, VERSION, Kind, Message, decode, encode

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
scalars = scalars.filter(lambda value: not isinstance(value, str) or _printable(value))
headers = st.dictionaries(
    st.text().filter(lambda key: _printable(key)),
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=8),
    max_size=6,
)


def _printable(text: str) -> bool:
    return not any(0xD800 <= ord(character) < 0xE000 for character in text)


def prefix(kind: int = Kind.ASK, version: int = VERSION, magic: bytes = MAGIC) -> bytes:
    return magic + bytes((version, kind))


@given(kind=st.sampled_from([kind for kind in Kind if kind is not Kind.CHUNK]), header=headers)
def test_any_header_survives(kind, header):
    assert decode(encode(Message(kind, header))) == Message(kind, header)


@given(body=st.binary(max_size=2000))
def test_a_body_survives_without_a_copy(body):
    view = memoryview(body)
    frames = encode(Message(Kind.CHUNK, {"id": "1", "n": 0}, view))
    assert frames[2] is view
    assert decode(frames).body is view


def test_the_layout_on_the_wire():
    assert encode(Message(Kind.ASK, {"round": 3})) == [b"FEDG\x02\x05", b'{"round":3}', b""]


def test_another_version_is_named_with_ours():
    with pytest.raises(ProtocolError, match=rf"version {VERSION + 1} .* version {VERSION}"):
        decode([prefix(version=VERSION + 1), b"{}", b""])


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        ([], "3 frames"),
        ([prefix(), b"{}"], "3 frames"),
        ([prefix(), b"{}", b"", b""], "3 frames"),
        ([b"", b"{}", b""], "mark"),
        ([b"GET / HTTP/1.1", b"{}", b""], "mark"),
        ([prefix(magic=b"FEDX"), b"{}", b""], "mark"),
        ([prefix(kind=0), b"{}", b""], "0 is no kind"),
        ([prefix(kind=200), b"{}", b""], "200 is no kind"),
        ([prefix(), b"", b""], "not JSON"),
        ([prefix(), b"{", b""], "not JSON"),
        ([prefix(), b"\xff\xfe", b""], "not JSON"),
        ([prefix(), b"[]", b""], "object was expected"),
        ([prefix(), b"3", b""], "object was expected"),
        ([prefix(), b'{"a":NaN}', b""], "NaN"),
        ([prefix(), b'{"a":-Infinity}', b""], "Infinity"),
        ([prefix(), b'{"a":1e999}', b""], "too large"),
        ([prefix(), b'{"a":"\\ud800"}', b""], "not JSON"),
        ([prefix(), b'{"a":' + b"9" * 60000 + b"}", b""], "not JSON"),
        ([prefix(), b'{"a":"' + b"x" * HEADER + b'"}', b""], "at most 65536"),
        ([prefix(kind=Kind.CREDIT), b"{}", b"x"], "it has none"),
        ([prefix(kind=Kind.CHUNK), b"{}", bytes(CHUNK + 1)], "at most 262144"),
    ],
)
def test_breaches_are_told(frames, told):
    with pytest.raises(ProtocolError, match=told):
        decode(frames)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_depth_is_bounded_before_parsing(opening):
    with pytest.raises(ProtocolError, match="deep"):
        decode([prefix(), b'{"a":' + opening * (HEADER // 8), b""])


def test_depth_counts_no_brackets_in_texts():
    header = {"a": "[" * 1000, "b": '"{' * 1000, "c": [[]] * 100}
    assert decode(encode(Message(Kind.ASK, header))).header == header
    with pytest.raises(ProtocolError, match=f"more than {DEPTH}"):
        encode(Message(Kind.ASK, {"a": json.loads("[" * DEPTH + "]" * DEPTH)}))


def test_a_text_that_never_ends_costs_no_time():
    start = time.perf_counter()
    with pytest.raises(ProtocolError):
        decode([prefix(), b'{"a' + b"[" * 40 + b'":"' + b'\\"' * 32000, b""])
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}, "x" * HEADER])
def test_what_cannot_be_written_is_refused(value):
    with pytest.raises(ProtocolError):
        encode(Message(Kind.ASK, {"a": value}))


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_junk_raises_nothing_else(frames):
    with pytest.raises(ProtocolError):
        decode(frames)


@given(kind=st.integers(0, 255), header=st.binary(max_size=200), body=st.binary(max_size=10))
def test_junk_behind_a_good_prefix_raises_nothing_else(kind, header, body):
    try:
        message = decode([prefix(kind=kind), header, body])
    except ProtocolError:
        return
    assert isinstance(message.header, dict)


@given(st.text(alphabet='{}[]",:\\u0dDeE+-.1ntr ', max_size=80))
def test_junk_that_looks_like_json_raises_nothing_else(text):
    try:
        message = decode([prefix(), text.encode(), b""])
    except ProtocolError:
        return
    assert decode(encode(message)) == message
