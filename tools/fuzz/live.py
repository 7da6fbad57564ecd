"""Damaged messages through live sockets, while a device that keeps to the rules goes on being answered.

Half of the messages come over tcp under a listed key, from somebody who may come in and then lies; half over ipc. Now
and then bytes that are no ZeroMQ at all go to the tcp port.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import zmq

from fedge.wire.bus import Hub
from fedge.wire.curve import new_pair
from fedge.wire.exchange import Breach, Delivery, Event
from fedge.wire.frames import Kind
from fedge.wire.keys import DeviceKey, Keyring
from fedge.wire.line import Line
from tools.fuzz.corpus import Recording
from tools.fuzz.frames import LIMIT, FrameTarget

#: How often in a row nothing arrives within 10 ms until what is left of a case is taken for thrown away by ZeroMQ.
PATIENCE = 8


class _Counting:
    """How many messages a hub's exchange has taken."""

    def __init__(self, hub: Hub):
        self.taken = 0
        take = hub._exchange.take

        def counted(identity: bytes, frames: Sequence[Any], owner: str | None = None) -> list[Event]:
            self.taken += 1
            return take(identity, frames, owner)

        hub._exchange.take = counted  # type: ignore[method-assign]


class LiveTarget:
    """Fulfils ``campaign.Target``."""

    name = "socket"

    def __init__(self, recording: Recording, place: Path):
        self._frames = FrameTarget(recording)
        ring = Keyring(place / "keys", new_pair)
        keys = {device: DeviceKey.read(ring.make(device)) for device in ("honest", *map("liar-{}".format, range(200)))}
        self._keys = keys
        self._hubs = {
            "ipc": Hub(limit=LIMIT, rate=1000.0),
            "tcp": Hub("tcp://127.0.0.1:*", keys=ring, limit=LIMIT, rate=1000.0),
        }
        self._honest = {
            "ipc": Line(self._hubs["ipc"].address, "honest", 1),
            "tcp": Line(self._hubs["tcp"].address, "honest", 1, key=keys["honest"]),
        }
        self._exchanges = {kind: _Counting(hub) for kind, hub in self._hubs.items()}
        self.arrived = self.sent = 0
        self._context = zmq.Context()
        self._incarnation = 1
        self._number = 0
        for kind, line in self._honest.items():
            line.start()
            line.post(Kind.HELLO)
            self._until(kind, Kind.HELLO)

    @property
    def counted(self) -> int:
        return self._frames.counted

    def case(self, draw: Random) -> str:
        kind = draw.choice(("ipc", "tcp"))
        if kind == "tcp" and draw.random() < 0.1:
            self._noise(draw)
        dealer = self._dial(kind, draw)
        sent = 0
        for frames in self._frames.messages(draw):
            if frames:
                dealer.send_multipart(frames)
                sent += 1
        try:
            breaches = self._taken_in(kind, sent)
            return self._still_answers(kind, breaches)
        finally:
            dealer.close(linger=0)

    def input(self) -> bytes:
        return self._frames.input()

    def close(self) -> None:
        """Say too how much of what was sent reached a hub: ZeroMQ itself throws some of it out."""
        print(f"{self.name}: {self.arrived} of {self.sent} messages reached a hub", file=sys.stderr)
        for line in self._honest.values():
            line.close(linger=0)
        for hub in self._hubs.values():
            hub.close(linger=0)
        self._context.term()

    def _dial(self, kind: str, draw: Random) -> zmq.Socket[bytes]:
        """A peer of its own for each case; over tcp each key comes in as seldom as it may."""
        self._incarnation += 1
        self._number += 1
        device = f"liar-{self._number % 200}"
        # over ipc whoever may enter the socket's folder is this user, and is believed
        named = device if kind == "ipc" or draw.random() < 0.9 else draw.choice(("honest", "liar-7", "nobody"))
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.SNDHWM, 0)
        dealer.setsockopt(zmq.IDENTITY, f"{named}.{self._incarnation}".encode())
        if kind == "tcp":
            key = self._keys[device]
            dealer.setsockopt(zmq.CURVE_SERVERKEY, key.coordinator.encode())
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, key.pair.public.encode())
            dealer.setsockopt(zmq.CURVE_SECRETKEY, key.pair.secret.encode())
        dealer.connect(self._hubs[kind].address)
        return dealer

    def _noise(self, draw: Random) -> None:
        """Bytes that are no ZMTP, or begin as such."""
        port = int(self._hubs["tcp"].address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as raw:
            greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + b"\0" + bytes(31)
            raw.sendall(draw.choice((b"", greeting, greeting[:12])) + draw.randbytes(draw.choice((1, 64, 4096))))

    def _taken_in(self, kind: str, sent: int) -> int:
        """Let the hub take in what the liar has sent, as far as it lets it; how many breaches that was."""
        hub, exchange, breaches, silent = self._hubs[kind], self._exchanges[kind], 0, 0
        want = exchange.taken + sent
        while exchange.taken < want and silent < PATIENCE:
            events = hub.receive(0.01)
            silent = 0 if events else silent + 1
            breaches += sum(isinstance(event, Breach) for event in events)
        self.sent += sent
        self.arrived += sent - max(0, want - exchange.taken)
        return breaches

    def _still_answers(self, kind: str, breaches: int) -> str:
        """The honest device says something and hears the answer, whatever else there is to take in."""
        hub, line = self._hubs[kind], self._honest[kind]
        line.post(Kind.TELL, {"n": self._number})
        breaches += self._until(kind, Kind.TELL)
        hub.post("honest", Kind.ASK, {"n": self._number})
        found = line.receive(5.0)
        assert [one.header for one in found] == [{"n": self._number}], found
        return "breach" if breaches else "ignored"

    def _until(self, kind: str, wanted: Kind) -> int:
        hub, until, breaches = self._hubs[kind], time.monotonic() + 5.0, 0
        while time.monotonic() < until:
            for event in hub.receive(0.2):
                honest = isinstance(event, Delivery) and event.device == "honest"
                if honest and isinstance(event, Delivery) and event.kind is wanted:
                    return breaches
                breaches += not isinstance(event, Delivery)
        raise AssertionError(f"the honest device's {wanted.name} did not arrive")
