"""Damaged messages before the sans-I/O side of the wire: the decoder, a coordinator's exchange, a device's session, and
the reading of an answer with its codecs."""

from __future__ import annotations

import hashlib
import json
from random import Random

import torch

from fedge.codecs.chain import Chain
from fedge.codecs.make import chain
from fedge.core.payload import Payload
from fedge.core.rng import generator
from fedge.errors import ProtocolError
from fedge.run.answers import require_finite
from fedge.wire.exchange import Breach, Delivery, Exchange, Gone
from fedge.wire.frames import Kind, decode
from fedge.wire.session import FROM_COORDINATOR, Session
from tools.fuzz.corpus import Frames, Recording
from tools.fuzz.mutate import NASTY, damaged, rejson

LIMIT = 4 << 20
_ID = b"phone-00.1"
_CODECS = (("topk", "int8"), ("svd", "int4", "zstd"), ("ternary",), ("qsgd",), ("sign",), ("fp16", "zstd"), ("nnadq",))


class FrameTarget:
    """Fulfils ``campaign.Target``."""

    name = "frames"

    def __init__(self, recording: Recording):
        self.counted = 0
        self._up = [messages for messages in recording.up.values() if len(messages) > 3]
        self._down = [messages for messages in recording.down.values() if len(messages) > 1]
        self._all = [message for messages in (*self._up, *self._down) for message in messages]
        self._encoded = [(made, _sample(made)) for made in (Chain(), *(chain([(w, {}) for w in c]) for c in _CODECS))]
        self._given: list[Frames] = []

    def case(self, draw: Random) -> str:
        way = draw.random()
        if way < 0.55:
            return self._coordinator(draw)
        if way < 0.9:
            return self._device(draw)
        return self._answer(draw)

    def input(self) -> bytes:
        return b"|".join(b",".join(frames) for frames in self._given)

    def close(self) -> None:
        self._given = []

    def messages(self, draw: Random) -> list[Frames]:
        """What a device sends that has said HELLO, some of it damaged."""
        return self._messages(draw, self._up, 1)

    def _messages(self, draw: Random, of: list[list[Frames]], first: int) -> list[Frames]:
        """Some messages in a row, most of them damaged, after the ``first`` which are whole."""
        messages = draw.choice(of)
        start = draw.randrange(len(messages))
        row = [*messages[:first], *messages[start : start + draw.choice((1, 2, 4, 8))]]
        found = []
        for place, message in enumerate(row):
            if place < first and draw.random() < 0.9:
                found.append(message)
            else:
                found.append(self._damaged(message, draw))
                self.counted += 1
        self._given = found
        return found

    def _damaged(self, message: Frames, draw: Random) -> Frames:
        frames = list(message)
        way = draw.randrange(10)
        if way == 0:
            at = draw.randrange(len(frames))
            return draw.choice((frames[:at], [*frames, b""], [*frames, *frames], frames[::-1], frames[at:]))
        if way == 1 and len(frames[0]) == 6:
            frames[0] = frames[0][:5] + bytes((draw.choice([*Kind, 0, 13, 255]),))
        elif way < 6 and len(frames) > 1:
            frames[1] = rejson(frames[1], draw)
        elif way == 6 and len(frames) > 2:
            frames[1] = _declared(frames, draw)
        else:
            at = draw.randrange(len(frames))
            other = draw.choice(draw.choice(self._all))
            frames[at] = damaged(frames[at], draw, other)
        return frames

    def _coordinator(self, draw: Random) -> str:
        exchange = Exchange(limit=LIMIT, rate=100.0, clock=lambda: 0.0)
        met = "taken"
        owner = draw.choice((None, None, None, "phone-00", "phone-01", ""))
        for number, frames in enumerate(self._messages(draw, self._up, 1)):
            identity = _ID if draw.random() < 0.95 or not number else damaged(_ID, draw)
            for event in exchange.take(identity, frames, owner):
                if isinstance(event, Breach):
                    met = "breach"
                    assert isinstance(event.error, ProtocolError)
                else:
                    assert isinstance(event, (Delivery, Gone))
            for _ in exchange.outgoing():
                pass
        exchange.news()
        return met

    def _device(self, draw: Random) -> str:
        session = Session(FROM_COORDINATOR, limit=LIMIT)
        for frames in self._messages(draw, self._down, 0):
            if draw.random() < 0.3:
                decode(frames)
            session.take(frames)
            while session.give() is not None:
                pass
        return "taken"

    def _answer(self, draw: Random) -> str:
        made, data = draw.choice(self._encoded)
        length = 8 + int.from_bytes(data[:8], "little")
        self.counted += 1
        if draw.random() < 0.6:
            header = rejson(data[8:length], draw)
            if draw.random() < 0.5:
                header = _within(data[8:length], draw)
            found = len(header).to_bytes(8, "little") + header + data[length:]
        else:
            found = damaged(data, draw)
        self._given = [[found]]
        payload = made.decode(Payload.from_bytes(bytearray(found)), 1 << 20)
        require_finite(payload)
        return "taken"


def _declared(frames: Frames, draw: Random) -> bytes:
    """The header with a declaration of a blob that its body may or may not fit."""
    try:
        header = json.loads(frames[1])
    except ValueError:
        return frames[1]
    if not isinstance(header, dict):
        return frames[1]
    length = draw.choice((len(frames[2]), 0, 1, 1 << 18, (1 << 18) + 1, LIMIT, LIMIT + 1, 1 << 40, -1))
    blob = {
        "id": draw.choice(("1", "x" * 64, "")),
        "length": length,
        "sha256": hashlib.sha256(frames[2]).hexdigest(),
        "chunks": -(-length // (1 << 18)),
    }
    if draw.random() < 0.4:
        blob[draw.choice(list(blob))] = draw.choice(NASTY)
    return json.dumps({**header, "blob": blob}).encode()


def _within(header: bytes, draw: Random) -> bytes:
    """A payload's header with what it says of itself, JSON in JSON, changed."""
    value = json.loads(header)
    about = value.get("__metadata__", {}).get("fedge")
    if about is None:
        return header
    value["__metadata__"]["fedge"] = rejson(about.encode(), draw).decode("utf-8", "replace")
    return json.dumps(value).encode()


def _sample(made: Chain) -> bytes:
    drawn = generator("fuzz")
    tree = {"a.weight": torch.randn(24, 16, generator=drawn), "a.bias": torch.randn(16, generator=drawn)}
    return bytes(made.encode(Payload({"delta": tree}, 3.0, {"loss": 0.5}), drawn, {}).to_bytes())
