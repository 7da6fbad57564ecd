"""One connection, seen from either end, without its socket.

Messages arrive in the order in which they were posted, each with its blob complete: what is posted after a message with
a blob waits until the last chunk has left. Only BEAT and CREDIT overtake, so a session that is busy with a long
transfer still shows that it is alive, and both ends can send at once; and a FAIL, with which the coordinator says why
it has dropped a device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from fedge.errors import ProtocolError
from fedge.wire.blobs import LIMIT, WINDOW, Blob, Declaration, Incoming, Outgoing
from fedge.wire.frames import BARE, Buffer, Kind, Message, decode, encode

#: Kinds that may come in the middle of a blob: a sign of life, and what ends it all.
OVERTAKING = frozenset({Kind.BEAT, Kind.FAIL})
FROM_DEVICE = frozenset(Kind) - {Kind.WELCOME, Kind.PREPARE, Kind.ASK}
FROM_COORDINATOR = frozenset(Kind) - {Kind.HELLO, Kind.READY, Kind.TELL, Kind.BEAT}


@dataclass
class Counts:
    """Bytes that passed, in and out: ``body`` is the third frame of every message, ``header`` the two before it."""

    body_in: int = 0
    body_out: int = 0
    header_in: int = 0
    header_out: int = 0
    ignored: int = 0  # messages, not bytes: from stale or dropped incarnations
    refused: int = 0  # likewise: those that broke the protocol


@dataclass(frozen=True)
class Parcel:
    """A message as it was posted, with its blob complete and verified."""

    kind: Kind
    header: dict[str, Any]
    blob: bytearray | None = None


class Session:
    """The state of one connection: what waits to leave, and the blob that is coming in."""

    def __init__(
        self, accepts: Collection[Kind], *, limit: int = LIMIT, window: int = WINDOW, counts: Counts | None = None
    ):
        """``accepts``: what the other end may send; ``limit``: bytes of a blob; ``window``: bytes of it under way."""
        self.counts = counts or Counts()
        self._accepts = frozenset(accepts)
        self._limit = limit
        self._window = window
        self._ids = count(1)
        self._urgent: deque[list[Buffer]] = deque()
        self._lane: deque[tuple[list[Buffer], Outgoing | None, Mapping[str, Any]]] = deque()
        self._outgoing: Outgoing | None = None
        self._leaving: Mapping[str, Any] = {}
        self._incoming: tuple[Message, Incoming] | None = None

    @property
    def idle(self) -> bool:
        """Whether everything that was posted has been given out."""
        return not (self._urgent or self._lane or self._outgoing)

    @property
    def receiving(self) -> bool:
        """Whether a blob has been declared to this end and is not complete."""
        return self._incoming is not None

    @property
    def arriving(self) -> Mapping[str, Any]:
        """The header of the message whose blob is coming in; empty when none is."""
        return self._incoming[0].header if self._incoming is not None else {}

    @property
    def leaving(self) -> Mapping[str, Any]:
        """The header of the message that was given out last, which a chunk given out now belongs to."""
        return self._leaving

    def post(self, kind: Kind, header: Mapping[str, Any] | None = None, blob: Blob | None = None) -> None:
        """Put a message in line; another thread than the rest may do so. ProtocolError if it cannot be sent."""
        fields = dict(header or {})
        if "blob" in fields:
            raise ProtocolError(f"'blob' in the header of {kind.name} is reserved for the blob's declaration")
        if kind in (Kind.CHUNK, Kind.CREDIT):
            raise ProtocolError(f"{kind.name} is sent by the session alone")
        if kind in BARE and blob is not None:
            raise ProtocolError(f"{kind.name} carries no blob")
        outgoing: Outgoing | None = None
        body: Buffer = b""
        if blob is not None:
            outgoing = Outgoing(str(next(self._ids)), blob)
            fields["blob"] = outgoing.declare()
            if blob.chunks == 1:
                outgoing, body = None, blob.view
        frames = encode(Message(kind, fields, body))
        if kind is Kind.BEAT:
            self._urgent.append(frames)
        else:
            self._lane.append((frames, outgoing, fields))

    def give(self, *, urgent: bool = False) -> list[Buffer] | None:
        """The next frames to send, or None if there are none now. ``urgent``: only what overtakes."""
        frames: list[Buffer] | None = None
        if self._urgent:
            frames = self._urgent.popleft()
        elif not urgent:
            frames = self._next()
        if frames is not None:
            self.counts.header_out += len(frames[0]) + len(frames[1])
            self.counts.body_out += len(frames[2])
        return frames

    def take(self, frames: Sequence[Buffer]) -> Parcel | None:
        """Take what arrived; a Parcel when that completes one. ProtocolError on a breach, after which it is over."""
        message = decode(frames)
        self.counts.header_in += len(frames[0]) + len(frames[1])
        self.counts.body_in += len(frames[2])
        if message.kind not in self._accepts:
            raise ProtocolError(f"{message.kind.name} is not for this end to receive")
        if message.kind is Kind.CHUNK:
            return self._take_chunk(message)
        if message.kind is Kind.CREDIT:
            self._take_credit(message)
            return None
        if self._incoming is not None and message.kind not in OVERTAKING:
            raise ProtocolError(f"{message.kind.name} came before blob {self._incoming[1].declared.id!r} was complete")
        if "blob" in message.header:
            return self._open(message)
        if len(message.body):
            raise ProtocolError(f"{message.kind.name} came with a body that its header doesn't declare")
        return Parcel(message.kind, message.header)

    def _next(self) -> list[Buffer] | None:
        if self._outgoing is not None:
            chunk = self._outgoing.next()
            if self._outgoing.done:
                self._outgoing = None
            return None if chunk is None else encode(chunk)
        if not self._lane:
            return None
        frames, outgoing, self._leaving = self._lane.popleft()
        if outgoing is not None and not outgoing.done:
            self._outgoing = outgoing
        return frames

    def _open(self, message: Message) -> Parcel | None:
        if message.kind in BARE:
            raise ProtocolError(f"{message.kind.name} carries no blob")
        declared = Declaration.read(message.header.pop("blob"), self._limit)
        incoming = Incoming(declared, self._window)
        if declared.chunks == 1:
            incoming.credit()
            incoming.take({"id": declared.id, "n": 0}, message.body)
        elif len(message.body):
            raise ProtocolError(f"blob {declared.id!r}: of {declared.chunks} chunks, none comes with the declaration")
        self._incoming = (message, incoming)
        return self._settle()

    def _take_chunk(self, chunk: Message) -> Parcel | None:
        if self._incoming is None:
            raise ProtocolError(f"a chunk of blob {str(chunk.header.get('id'))[:64]!r} came, no blob is on its way")
        self._incoming[1].take(chunk.header, chunk.body)
        return self._settle()

    def _settle(self) -> Parcel | None:
        assert self._incoming is not None
        message, incoming = self._incoming
        if incoming.done:
            self._incoming = None
            return Parcel(message.kind, message.header, incoming.finish())
        credit = incoming.credit()
        if credit:
            self._urgent.append(encode(Message(Kind.CREDIT, {"id": incoming.declared.id, "n": credit})))
        return None

    def _take_credit(self, message: Message) -> None:
        if self._outgoing is None or message.header.get("id") != self._outgoing.id:
            raise ProtocolError(f"credit for blob {str(message.header.get('id'))[:64]!r}, which is not being sent")
        self._outgoing.grant(message.header.get("n"))
