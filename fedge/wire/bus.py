"""The coordinator's socket: Hub. Beside it only ``line``, a device's, and ``curve``, which secures both, import zmq.

Neither drops a message for want of room: sending queues are unbounded, and what fills them is bounded by credit. Each
makes its own ZeroMQ context, and nothing is made when this module is imported, so that a process may fork until it
makes one.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

import zmq

from fedge.errors import FedgeError
from fedge.wire.blobs import LIMIT, WINDOW, Blob
from fedge.wire.exchange import Event, Exchange
from fedge.wire.frames import CHUNK, Buffer, Kind
from fedge.wire.keys import Keyring
from fedge.wire.session import Counts

if TYPE_CHECKING:
    from fedge.wire.curve import Gate

LINGER = 1.0
PATH = 107  # bytes that fit into the address of a Unix socket
BATCH = 256  # messages taken in before what they led to is given out
QUEUED = 64  # messages that ZeroMQ holds for us from each peer before that peer has to wait
SEALED = 64  # bytes by which CURVE makes a frame longer, at most


def path_of(address: str) -> str:
    """The path in an ``ipc://`` address; FedgeError for every other one."""
    path = address.removeprefix("ipc://")
    if path == address or not path.startswith("/"):
        raise FedgeError(f"{address}: an address is ipc:// and an absolute path")
    if len(os.fsencode(path)) > PATH:
        raise FedgeError(f"{address}: a socket's path holds at most {PATH} bytes", hint="set TMPDIR to a shorter one")
    return path


def check_address(address: str, keys: object) -> None:
    """FedgeError for an address that can't be used so."""
    if not address.startswith("tcp://"):
        path_of(address)
    elif keys is None:
        raise FedgeError(f"{address}: tcp needs keys", hint="`fedge keys` makes them; ipc:// is for one host")


def milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else max(0, math.ceil(seconds * 1000))


def buffers(parts: Sequence[zmq.Frame]) -> list[Buffer]:
    return [part.buffer for part in parts]


class Hub:
    """The coordinator's end: one socket for all devices. To be used from one thread.

    Transfers proceed while ``receive`` runs; between calls they rest, and no device can make the hub hold more than its
    window meanwhile.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        limit: int = LIMIT,
        window: int = WINDOW,
        keys: Keyring | None = None,
        rate: float | None = None,
    ):
        """Bind to ``address``, or in a new folder that only this user can enter.

        ``limit`` is the largest blob that a device may send, ``window`` what may be under way from each, in bytes;
        ``rate``: messages a second from each. ``keys``: who may come in; tcp has to have them, and then a device is
        whom its key is bound to. FedgeError if the address cannot be used.
        """
        self._folder: str | None = None
        if address is None:
            self._folder = tempfile.mkdtemp(prefix="fedge-")
            address = f"ipc://{self._folder}/hub"
        self.address = address
        self._exchange = Exchange(limit=limit, window=window, rate=rate)
        self._gate: Gate | None = None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        try:
            check_address(address, keys)
            prepare(self._socket, address)
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            if keys is not None:
                from fedge.wire.curve import Gate

                self._gate = Gate(self._socket, keys)
            self._socket.bind(address)
            bound = self._socket.getsockopt(zmq.LAST_ENDPOINT)
            assert isinstance(bound, bytes)
            self.address = bound.rstrip(b"\0").decode("utf-8", "surrogateescape")
        except (zmq.ZMQError, FedgeError) as error:
            self.close()
            raise error if isinstance(error, FedgeError) else _unbound(address, error) from None

    def __enter__(self) -> Hub:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def devices(self) -> list[str]:
        """The devices that are connected now, in order."""
        return self._exchange.devices

    @property
    def sending(self) -> set[str]:
        """The devices of whose blob a part has arrived."""
        return self._exchange.sending

    @property
    def limit(self) -> int:
        """The largest blob that a device which connects from now on may send, in bytes."""
        return self._exchange.limit

    @limit.setter
    def limit(self, value: int) -> None:
        self._exchange.limit = value

    def refused(self) -> dict[str, int]:
        """How many were turned away at the gate: by an unlisted ``key``, too ``often``, or in the ``handshake``."""
        if self._gate is None:
            return {}
        self._gate.look()
        return {name: self._gate.refused[name] for name in ("key", "handshake", "often")}

    def dismiss(self, device: str, why: str) -> None:
        """Drop a device and tell it why; it may come back under a higher incarnation."""
        self._exchange.dismiss(device, why)
        self._flush()

    def post(self, device: str, kind: Kind, header: Mapping[str, Any] | None = None, blob: Blob | None = None) -> None:
        """Send to a device; a device that is not there comes out of ``receive`` as Gone.

        ``blob`` is sent without a copy, so its buffer must not change until every device has it. ProtocolError for a
        header that is not JSON or is too large.
        """
        self._exchange.post(device, kind, header, blob)
        self._flush()

    def receive(self, timeout: float | None = None) -> list[Event]:
        """What has arrived: waits for the first event, at most ``timeout`` seconds (None: for ever)."""
        until = None if timeout is None else monotonic() + timeout
        while True:
            events = self._pull()
            left = None if until is None else until - monotonic()
            if events or (left is not None and left <= 0):
                return events
            self._socket.poll(milliseconds(left))

    def wait(self, timeout: float | None = None, fds: Sequence[int] = (), beside: Sequence[Hub] = ()) -> list[int]:
        """Wait until ``receive(0)`` has something to do, here or at a hub ``beside``, or one of ``fds`` is readable;
        the fds that are.

        The socket's own descriptor is not offered: it tells of changes only, and would be misread beside others.
        """
        poller = zmq.Poller()
        for hub in (self, *beside):
            poller.register(hub._socket, zmq.POLLIN)
            if hub._exchange.restless:
                timeout = 0
        for fd in fds:
            poller.register(fd, zmq.POLLIN)
        ready = poller.poll(milliseconds(timeout))
        return [item for item, _ in ready if isinstance(item, int)]

    def forget(self, device: str) -> None:
        """Drop a device's partial transfers and what waits for it; it may come back under a higher incarnation."""
        self._exchange.forget(device)

    def counts(self, device: str) -> Counts:
        """The bytes that passed so far from and to a device, over all its incarnations."""
        return self._exchange.counts(device)

    def close(self, linger: float = LINGER) -> None:
        """Close the socket, after at most ``linger`` seconds for what was handed to it, and remove the folder."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.close()
        self._socket.close(linger=milliseconds(linger))
        self._context.term()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _pull(self) -> list[Event]:
        events: list[Event] = []
        for _ in range(BATCH):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            owner = None if self._gate is None else self._gate.device(parts[0])
            events += self._exchange.take(parts[0].bytes, buffers(parts[1:]), owner)
            self._flush()
        return events + self._exchange.news()

    def _flush(self) -> None:
        for identity, frames in self._exchange.outgoing():
            try:
                self._socket.send_multipart([identity, *frames], zmq.NOBLOCK, copy=False)
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self._exchange.lost(identity)


def _unbound(address: str, error: zmq.ZMQError) -> FedgeError:
    """What to say when an address can't be listened at."""
    if error.errno == errno.EADDRINUSE:
        return FedgeError(f"{address}: the port is taken", hint="another one, or * for any that is free")
    if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
        return FedgeError(f"{address}: this host has no such address", hint="tcp://0.0.0.0:PORT listens on all it has")
    if error.errno == errno.EACCES:
        return FedgeError(f"{address}: this port is not for everyone", hint="one above 1023")
    return FedgeError(f"{address}: {error}")


def prepare(socket: zmq.Socket[bytes], address: str) -> None:
    """Set what every socket has, whichever end it is."""
    socket.setsockopt(zmq.IPV6, int(address.startswith(("tcp://[", "tcp://*"))))
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, QUEUED)
    socket.setsockopt(zmq.MAXMSGSIZE, CHUNK + SEALED)
    socket.setsockopt(zmq.LINGER, int(LINGER * 1000))
