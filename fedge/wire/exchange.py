"""All the connections of a coordinator, without their socket: who is live, who is stale, who broke the protocol.

A connection's identity is ``device.incarnation``. A device that comes back does so under a higher incarnation, with a
HELLO first; what an older one still sends is ignored and counted. A breach ends the incarnation that committed it and
comes out as an event: the others go on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from fedge.errors import ProtocolError
from fedge.wire.blobs import LIMIT, WINDOW, Blob
from fedge.wire.frames import Buffer, Kind
from fedge.wire.session import FROM_DEVICE, Counts, Session

REMEMBERED = 4096  # identities that broke the protocol before they said HELLO

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

    def __init__(self, *, limit: int = LIMIT, window: int = WINDOW):
        """``limit``: bytes of a blob that a device may send; ``window``: bytes that may be under way from each."""
        self._limit = limit
        self._window = window
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

    def take(self, identity: bytes, frames: Sequence[Buffer]) -> list[Event]:
        """Take what a peer sent. Never raises for anything that a peer can send."""
        named = identified(identity)
        if identity in self._shunned:
            self._ignore(named)
            return []
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
            parcel = peer.session.take(frames)
            if parcel is not None and parcel.kind is Kind.HELLO:
                raise ProtocolError("HELLO came twice")
        except ProtocolError as error:
            self.forget(device)
            return [Breach(device, incarnation, ProtocolError(error.message, device=device))]
        self._busy[device] = None
        if parcel is None:
            return []
        return [Delivery(device, incarnation, parcel.kind, parcel.header, parcel.blob)]

    def outgoing(self) -> Iterator[tuple[bytes, list[Buffer]]]:
        """Everything that may leave now, as (identity, frames). Call ``lost`` for an identity that is not there."""
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

    def _meet(self, identity: bytes, device: str, incarnation: int, frames: Sequence[Buffer]) -> list[Event]:
        counts = self._counts.setdefault(device, Counts())
        session = Session(FROM_DEVICE, limit=self._limit, window=self._window, counts=counts)
        try:
            parcel = session.take(frames)
            if parcel is None or parcel.kind is not Kind.HELLO:
                raise ProtocolError("the first message has to be a HELLO")
        except ProtocolError as error:
            return [self._shun(identity, device, incarnation, ProtocolError(error.message, device=device))]
        self.forget(device)
        self._latest[device] = incarnation
        self._peers[device] = _Peer(device, incarnation, identity, session)
        return [Delivery(device, incarnation, parcel.kind, parcel.header, parcel.blob)]

    def _shun(self, identity: bytes, device: str, incarnation: int | None, error: ProtocolError) -> Breach:
        if len(self._shunned) >= REMEMBERED:
            del self._shunned[next(iter(self._shunned))]
        self._shunned[identity] = None
        return Breach(device, incarnation, error)

    def _ignore(self, named: tuple[str, int] | None) -> None:
        if named is not None:
            self._counts.setdefault(named[0], Counts()).ignored += 1
