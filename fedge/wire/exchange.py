"""All the connections of a coordinator, without their socket: who is live, who is stale, who broke the protocol.

A connection's identity is ``device.incarnation``. A device that comes back does so under a higher incarnation, with a
HELLO first; what an older one still sends is ignored and counted. A breach ends the incarnation that committed it and
comes out as an event, and the device is told why: the others go on. Where peers are authenticated, ``take`` is told
whose key a message came under, and that device is the only one that it can be from.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, TypeAlias

from fedge.errors import ProtocolError
from fedge.wire.blobs import LIMIT, WINDOW, Blob
from fedge.wire.frames import Buffer, Kind, Message, encode
from fedge.wire.session import FROM_DEVICE, Counts, Session

REMEMBERED = 4096  # identities that broke the protocol before they said HELLO
BURST = 1000  # messages, chunks apart, that a rate leaves a device to send at once

_IDENTITY = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.:@-]{0,199})\.(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True)
class Delivery:
    """A message that has arrived, its blob complete and verified; ``device`` sent it, or at a device, received it."""

    device: str
    incarnation: int
    kind: Kind
    header: dict[str, Any]
    blob: bytearray | None = None


@dataclass(frozen=True)
class Breach:
    """A peer broke the protocol; its later messages are ignored. ``incarnation`` is None for a peer without a name."""

    device: str
    incarnation: int | None
    error: ProtocolError


@dataclass(frozen=True)
class Gone:
    """Something was posted to a device that is not connected (None: it never was, or was forgotten)."""

    device: str
    incarnation: int | None


Event: TypeAlias = Delivery | Breach | Gone


@dataclass
class _Peer:
    device: str
    incarnation: int
    identity: bytes
    session: Session
    left: float = BURST
    heard: float = 0.0


def identify(device: str, incarnation: int) -> bytes:
    """The identity of a connection. ProtocolError for a name that cannot be one."""
    text = f"{device}.{incarnation}"
    if not _IDENTITY.fullmatch(text):
        raise ProtocolError(f"{text!r} cannot be the identity of a connection")
    return text.encode("ascii")


def identified(identity: bytes) -> tuple[str, int] | None:
    """The device and the incarnation that an identity names, or None if it names none."""
    found = _IDENTITY.fullmatch(identity.decode("ascii", "replace"))
    return (found.group(1), int(found.group(2))) if found else None


class Exchange:
    """Takes frames from any peer and returns events; holds what is to be sent to each."""

    def __init__(
        self,
        *,
        limit: int = LIMIT,
        window: int = WINDOW,
        rate: float | None = None,
        clock: Callable[[], float] = monotonic,
    ):
        """``limit``: bytes of a blob that a device may send; ``window``: bytes that may be under way from each;
        ``rate``: messages a second, chunks apart, that each may send for long (None: any number)."""
        self.limit = limit
        self._window = window
        self._rate = rate
        self._clock = clock
        self._parting: deque[tuple[bytes, list[Buffer]]] = deque()
        self._peers: dict[str, _Peer] = {}
        self._latest: dict[str, int] = {}
        self._counts: dict[str, Counts] = {}
        self._shunned: dict[bytes, None] = {}
        self._busy: dict[str, None] = {}
        self._gone: list[Gone] = []

    @property
    def devices(self) -> list[str]:
        """The devices that are connected now, in order."""
        return sorted(self._peers)

    @property
    def sending(self) -> set[str]:
        """The devices of whose blob a part has arrived."""
        return {device for device, peer in self._peers.items() if peer.session.receiving}

    @property
    def restless(self) -> bool:
        """Whether there are events that no arrival is needed for."""
        return bool(self._gone)

    def post(self, device: str, kind: Kind, header: Mapping[str, Any] | None = None, blob: Blob | None = None) -> None:
        """Put a message in line for a device; if it is not connected, that comes out as a Gone."""
        peer = self._peers.get(device)
        if peer is None:
            self._gone.append(Gone(device, None))
            return
        peer.session.post(kind, header, blob)
        self._busy[device] = None

    def take(self, identity: bytes, frames: Sequence[Buffer], owner: str | None = None) -> list[Event]:
        """Take what a peer sent. Never raises for anything that a peer can send.

        ``owner``: the device whose key it came under, '' for a key that was revoked; None where there are no keys.
        """
        named = identified(identity)
        if identity in self._shunned:
            self._ignore(named if owner is None else (owner, 0))
            return []
        if owner is not None and (named is None or named[0] != owner):
            return self._foreign(identity, named, owner)
        if named is None:
            name = identity[:32].hex()
            return [self._shun(identity, name, None, ProtocolError(f"peer {name} has no device's identity"))]
        device, incarnation = named
        peer = self._peers.get(device)
        if peer is None or peer.incarnation != incarnation:
            if incarnation <= self._latest.get(device, -1):
                self._ignore(named)
                return []
            return self._meet(identity, device, incarnation, frames)
        try:
            self._pass(peer, frames)
            parcel = peer.session.take(frames)
            if parcel is not None and parcel.kind is Kind.HELLO:
                raise ProtocolError("HELLO came twice")
        except ProtocolError as error:
            peer.session.counts.refused += 1
            self.dismiss(device, error.message)
            return [Breach(device, incarnation, ProtocolError(error.message, device=device))]
        self._busy[device] = None
        if parcel is None:
            return []
        return [Delivery(device, incarnation, parcel.kind, parcel.header, parcel.blob)]

    def dismiss(self, device: str, why: str) -> None:
        """Tell a device by a FAIL that it is dropped and why, before anything that waits for it; then forget it."""
        peer = self._peers.get(device)
        if peer is not None:
            frames = encode(Message(Kind.FAIL, {"cause": "protocol", "message": why[:2000]}))
            self._parting.append((peer.identity, frames))
        self.forget(device)

    def outgoing(self) -> Iterator[tuple[bytes, list[Buffer]]]:
        """Everything that may leave now, as (identity, frames). Call ``lost`` for an identity that is not there."""
        while self._parting:
            yield self._parting.popleft()
        while self._busy:
            device = next(iter(self._busy))
            peer = self._peers.get(device)
            while peer is not None and peer is self._peers.get(device):
                frames = peer.session.give()
                if frames is None:
                    break
                yield peer.identity, frames
            self._busy.pop(device, None)

    def lost(self, identity: bytes) -> None:
        """The connection of that identity is not there any more: forget it, and say so by a Gone."""
        named = identified(identity)
        if named is not None and named[0] in self._peers and self._peers[named[0]].identity == identity:
            self.forget(named[0])
            self._gone.append(Gone(*named))

    def news(self) -> list[Event]:
        """The events that no arrival caused, given out once."""
        gone, self._gone = self._gone, []
        return list(gone)

    def forget(self, device: str) -> None:
        """Drop a device's partial transfers and what waits for it. It has to come back under a higher incarnation."""
        self._peers.pop(device, None)
        self._busy.pop(device, None)

    def counts(self, device: str) -> Counts:
        """A copy of the bytes that passed so far, over all incarnations of a device."""
        return replace(self._counts.get(device, Counts()))

    def _pass(self, peer: _Peer, frames: Sequence[Buffer]) -> None:
        """Count a message against the peer's rate. What chunks may come is a matter of credit."""
        if self._rate is None or (frames and bytes(frames[0][5:6]) == bytes((Kind.CHUNK,))):
            return
        now = self._clock()
        peer.left = min(float(BURST), peer.left + (now - peer.heard) * self._rate)
        peer.heard = now
        if peer.left < 1.0:
            raise ProtocolError(f"more than {self._rate:g} messages a second, {BURST} at once")
        peer.left -= 1.0

    def _foreign(self, identity: bytes, named: tuple[str, int] | None, owner: str) -> list[Event]:
        """A message under another device's key: whose identity it takes hears nothing of it, and loses nothing."""
        if not owner:  # a key that was let in once; the device that had it is dropped
            peer = None if named is None else self._peers.get(named[0])
            if peer is None or peer.identity != identity:
                self._shun(identity, "", None, ProtocolError("its key was revoked"))
                return []
            self.dismiss(peer.device, "its key was revoked")
            error = ProtocolError("its key was revoked", device=peer.device)
            return [self._shun(identity, peer.device, peer.incarnation, error)]
        claimed = identity[:64].decode("ascii", "replace") if named is None else named[0]
        self._counts.setdefault(owner, Counts()).refused += 1
        error = ProtocolError(f"came as '{claimed}' under the key of '{owner}'", device=owner)
        return [self._shun(identity, owner, None, error)]

    def _meet(self, identity: bytes, device: str, incarnation: int, frames: Sequence[Buffer]) -> list[Event]:
        counts = self._counts.setdefault(device, Counts())
        session = Session(FROM_DEVICE, limit=self.limit, window=self._window, counts=counts)
        try:
            parcel = session.take(frames)
            if parcel is None or parcel.kind is not Kind.HELLO:
                raise ProtocolError("the first message has to be a HELLO")
        except ProtocolError as error:
            counts.refused += 1
            return [self._shun(identity, device, incarnation, ProtocolError(error.message, device=device))]
        self.forget(device)
        self._latest[device] = incarnation
        self._peers[device] = _Peer(device, incarnation, identity, session, heard=self._clock())
        return [Delivery(device, incarnation, parcel.kind, parcel.header, parcel.blob)]

    def _shun(self, identity: bytes, device: str, incarnation: int | None, error: ProtocolError) -> Breach:
        if len(self._shunned) >= REMEMBERED:
            del self._shunned[next(iter(self._shunned))]
        self._shunned[identity] = None
        return Breach(device, incarnation, error)

    def _ignore(self, named: tuple[str, int] | None) -> None:
        if named is not None:
            self._counts.setdefault(named[0], Counts()).ignored += 1
