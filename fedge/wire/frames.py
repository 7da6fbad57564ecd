"""One message as three frames: who speaks which version of what, a JSON header, a body.

    frame 1   b"FEDG", one byte of version, one byte of kind
    frame 2   a JSON object in UTF-8, at most 64 KiB
    frame 3   at most 256 KiB: a chunk of a blob; empty in the kinds that carry none

Nothing here does I/O. Whatever a peer sends, ``decode`` returns a Message or raises ProtocolError.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NoReturn, TypeAlias

from fedge.errors import ProtocolError

MAGIC = b"FEDG"
VERSION = 2
HEADER = 64 * 1024
CHUNK = 256 * 1024
DEPTH = 32

Buffer: TypeAlias = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What a message is for; the number is what stands in the first frame."""

    HELLO = 1  # device: I am here
    WELCOME = 2  # coordinator: and expected
    PREPARE = 3  # coordinator: a stage and the variants on offer
    READY = 4  # device: the variant chosen, and why
    ASK = 5  # coordinator: one turn
    TELL = 6  # device: its answer
    CHUNK = 7  # either: a piece of a blob
    CREDIT = 8  # either: so many more pieces may come
    BEAT = 9  # device: still alive
    EVENT = 10  # either: something worth recording
    FAIL = 11  # either: something went wrong
    BYE = 12  # either: the end


@dataclass(frozen=True)
class Message:
    """One message; ``header`` holds JSON values, ``body`` a chunk of a blob or nothing."""

    kind: Kind
    header: dict[str, Any] = field(default_factory=dict)
    body: Buffer = b""


#: Kinds whose third frame is always empty.
BARE = frozenset({Kind.HELLO, Kind.BEAT, Kind.CREDIT})

_PREFIX = {kind: MAGIC + bytes((VERSION, kind)) for kind in Kind}
_KIND = {int(kind): kind for kind in Kind}
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)  # an open end matches too: no second scan of it
_BRACKET = re.compile(rb"[\[\]{}]")


def encode(message: Message) -> list[Buffer]:
    """The three frames of ``message``; its body is passed on without a copy. ProtocolError where it breaks a rule."""
    try:
        header = _WRITER.encode(message.header).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"the header of {message.kind.name} cannot be written as JSON: {error}") from None
    frames: list[Buffer] = [_PREFIX[message.kind], header, message.body]
    _check_sizes(message.kind, header, message.body)
    _check_depth(header)
    return frames


def decode(frames: Sequence[Buffer]) -> Message:
    """The message that three frames hold; the body stays a view of the third. ProtocolError on any breach."""
    if len(frames) != 3:
        raise ProtocolError(f"a message has 3 frames, this one {len(frames)}")
    kind = _read_prefix(frames[0])
    _check_sizes(kind, frames[1], frames[2])
    return Message(kind, _read_header(bytes(frames[1])), frames[2])


def _read_prefix(frame: Buffer) -> Kind:
    if len(frame) != len(MAGIC) + 2 or bytes(frame[: len(MAGIC)]) != MAGIC:
        raise ProtocolError("not a message of fedge: the first frame does not hold its mark")
    version, number = frame[len(MAGIC)], frame[len(MAGIC) + 1]
    if version != VERSION:
        raise ProtocolError(f"the peer speaks version {version} of the protocol, this side version {VERSION}")
    if number not in _KIND:
        raise ProtocolError(f"{number} is no kind of message")
    return _KIND[number]


def _check_sizes(kind: Kind, header: Buffer, body: Buffer) -> None:
    if len(header) > HEADER:
        raise ProtocolError(f"the header of {kind.name} has {len(header)} bytes, at most {HEADER} are allowed")
    if len(body) > CHUNK:
        raise ProtocolError(f"the body of {kind.name} has {len(body)} bytes, at most {CHUNK} are allowed")
    if len(body) and kind in BARE:
        raise ProtocolError(f"{kind.name} came with a body of {len(body)} bytes; it has none")


def _read_header(raw: bytes) -> dict[str, Any]:
    _check_depth(raw)
    try:
        text = raw.decode("utf-8")
        header = _READER.decode(text)
        if "\\u" in text:  # an escaped half of a surrogate pair parses, and then breaks whoever prints or stores it
            json.dumps(header, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the header is not JSON in UTF-8: {str(error)[:200]}") from None
    if not isinstance(header, dict):
        raise ProtocolError(f"the header is a JSON {type(header).__name__}, an object was expected")
    return header


def _check_depth(raw: bytes) -> None:
    # counted before parsing: a parser that recurses would be at the mercy of the stack
    if raw.count(b"[") + raw.count(b"{") <= DEPTH:
        return
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", raw)):
        depth += 1 if bracket.group() in b"[{" else -1
        if depth > DEPTH:
            raise ProtocolError(f"the header is nested more than {DEPTH} deep")


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


_WRITER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
_READER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
