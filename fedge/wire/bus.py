"""The sockets: Hub at the coordinator, Line at a device. The only file that imports zmq.

Neither drops a message for want of room: sending queues are unbounded, and what fills them is bounded by credit. Each
makes its own ZeroMQ context, and nothing is made when this module is imported, so that a process may fork until it
makes one.
"""

from __future__ import annotations

import math
import os
import queue
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from types import TracebackType
from typing import Any, TypeAlias

import zmq

from fedge.errors import FedgeError
from fedge.wire.blobs import LIMIT, WINDOW, Blob
from fedge.wire.exchange import Delivery, Event, Exchange, identify
from fedge.wire.frames import CHUNK, Buffer, Kind
from fedge.wire.session import FROM_COORDINATOR, Counts, Session

LINGER = 1.0
PATH = 107  # bytes that fit into the address of a Unix socket
BATCH = 256  # messages taken in before what they led to is given out
QUEUED = 64  # messages that ZeroMQ holds for us from each peer before that peer has to wait

Pace: TypeAlias = Callable[[int], float]


def path_of(address: str) -> str:
    """The path in an ``ipc://`` address; FedgeError for every other one."""
    if address.startswith("tcp://"):
        raise FedgeError(f"{address}: tcp needs CURVE keys, and is not built yet", hint="use ipc:// on one host")
    path = address.removeprefix("ipc://")
    if path == address or not path.startswith("/"):
        raise FedgeError(f"{address}: an address is ipc:// and an absolute path")
    if len(os.fsencode(path)) > PATH:
        raise FedgeError(f"{address}: a socket's path holds at most {PATH} bytes", hint="set TMPDIR to a shorter one")
    return path


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else max(0, math.ceil(seconds * 1000))


def _buffers(parts: Sequence[zmq.Frame]) -> list[Buffer]:
    return [part.buffer for part in parts]


class Hub:
    """The coordinator's end: one socket for all devices. To be used from one thread.

    Transfers proceed while ``receive`` runs; between calls they rest, and no device can make the hub hold more than its
    window meanwhile.
    """

    def __init__(self, address: str | None = None, *, limit: int = LIMIT, window: int = WINDOW):
        """Bind to ``address``, or in a new folder that only this user can enter.

        ``limit`` is the largest blob that a device may send, ``window`` what may be under way from each, in bytes.
        FedgeError if the address cannot be used.
        """
        self._folder: str | None = None
        if address is None:
            self._folder = tempfile.mkdtemp(prefix="fedge-")
            address = f"ipc://{self._folder}/hub"
        self.address = address
        self._exchange = Exchange(limit=limit, window=window)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        try:
            path_of(address)
            _prepare(self._socket)
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._socket.bind(address)
        except (zmq.ZMQError, FedgeError) as error:
            self.close()
            raise error if isinstance(error, FedgeError) else FedgeError(f"{address}: {error}") from None

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
            self._socket.poll(_milliseconds(left))

    def wait(self, timeout: float | None = None, fds: Sequence[int] = ()) -> list[int]:
        """Wait until ``receive(0)`` has something to do or one of ``fds`` is readable; the fds that are.

        The socket's own descriptor is not offered: it tells of changes only, and would be misread beside others.
        """
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        for fd in fds:
            poller.register(fd, zmq.POLLIN)
        ready = poller.poll(0 if self._exchange.restless else _milliseconds(timeout))
        return [item for item, _ in ready if isinstance(item, int)]

    def forget(self, device: str) -> None:
        """Drop a device's partial transfers and what waits for it; it may come back under a higher incarnation."""
        self._exchange.forget(device)

    def counts(self, device: str) -> Counts:
        """The bytes that passed so far from and to a device, over all its incarnations."""
        return self._exchange.counts(device)

    def close(self, linger: float = LINGER) -> None:
        """Close the socket, after at most ``linger`` seconds for what was handed to it, and remove the folder."""
        self._socket.close(linger=_milliseconds(linger))
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
            events += self._exchange.take(parts[0].bytes, _buffers(parts[1:]))
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


class Line:
    """A device's end. A thread of its own owns the socket, so the work thread may compute for as long as it likes.

    ``post`` and ``receive`` are for the work thread. The device has to post a HELLO first; heartbeats begin after it,
    and say under ``busy`` for how many seconds the work thread has not asked for anything.
    """

    def __init__(
        self,
        address: str,
        device: str,
        incarnation: int,
        *,
        limit: int = LIMIT,
        window: int = WINDOW,
        beat: float = 1.0,
        up: Pace | None = None,
        down: Pace | None = None,
    ):
        """Nothing is opened before ``start``.

        ``limit`` is the largest blob to accept, ``window`` what may be under way, in bytes; ``beat`` is in seconds.
        ``up`` and ``down`` pace the link: told the bytes of a chunk, each says in how many seconds it may pass.
        """
        path_of(address)
        self.address = address
        self.device = device
        self.incarnation = incarnation
        self._identity = identify(device, incarnation)
        self._session = Session(FROM_COORDINATOR, limit=limit, window=window)
        self._beat = beat
        self._up = up
        self._down = down
        self._inbox: queue.SimpleQueue[Delivery | BaseException] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._busy: float | None = None  # since when the work thread works
        self._next_beat = math.inf
        self._leaving: tuple[float, list[Buffer]] | None = None  # a chunk that waits for its pace
        self._arriving: deque[tuple[float, Delivery]] = deque()  # likewise
        self._last = 0.0  # when the last chunk that came may be seen
        self._closing: float | None = None
        self._linger = LINGER
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Line:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Connect, and start the thread. The context is made here: in a forked process, call it after the fork."""
        self._waker, self._wake = os.pipe()
        os.set_blocking(self._waker, False)
        os.set_blocking(self._wake, False)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        _prepare(self._socket)
        self._socket.setsockopt(zmq.IDENTITY, self._identity)
        self._socket.connect(self.address)
        self._thread = threading.Thread(target=self._run, name=f"line {self.device}", daemon=True)
        self._thread.start()

    def post(self, kind: Kind, header: Mapping[str, Any] | None = None, blob: Blob | None = None) -> None:
        """Put a message in line and return. ProtocolError for a header that is not JSON or is too large.

        The buffer of ``blob`` must not change until it has been sent.
        """
        if self._failure is not None:
            raise self._failure
        self._session.post(kind, header, blob)
        self._nudge()

    def receive(self, timeout: float | None = None) -> list[Delivery]:
        """What has arrived: waits for the first delivery, at most ``timeout`` seconds (None: for ever).

        ProtocolError when the coordinator broke the protocol; from then on the line is dead and says so again.
        """
        self._busy = None
        deliveries: list[Delivery] = []
        with suppress(queue.Empty):
            while self._failure is None:
                item = self._inbox.get_nowait() if deliveries else self._inbox.get(timeout=timeout)
                if isinstance(item, BaseException):
                    self._failure = item
                else:
                    deliveries.append(item)
        self._busy = monotonic()
        if self._failure is not None and not deliveries:
            raise self._failure
        return deliveries

    def counts(self) -> Counts:
        """The bytes that passed so far."""
        return replace(self._session.counts)

    def close(self, linger: float = LINGER) -> None:
        """Stop, after at most ``linger`` seconds in which what was posted may still leave."""
        if self._thread is None:
            return
        self._linger = linger
        self._closing = monotonic() + linger
        self._nudge()
        self._thread.join()
        self._thread = None
        os.close(self._wake)
        os.close(self._waker)

    def _nudge(self) -> None:
        with suppress(BlockingIOError):  # the pipe may be full of earlier nudges
            os.write(self._wake, b"!")

    # From here on: the thread that owns the socket.

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._inbox.put(error)
        finally:
            self._socket.close(linger=_milliseconds(self._linger))
            self._context.term()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._waker, zmq.POLLIN)
        while True:
            for ready, _ in poller.poll(_milliseconds(self._rest())):
                if ready == self._waker:
                    os.read(self._waker, 4096)
            self._pull()
            self._pulse()
            self._flush()
            if self._closing is not None and (self._quiet() or monotonic() >= self._closing):
                return

    def _rest(self) -> float | None:
        """Seconds until something is due without anything arriving; None if nothing ever is."""
        due = [self._next_beat]
        if self._leaving is not None:
            due.append(self._leaving[0])
        if self._arriving:
            due.append(self._arriving[0][0])
        if self._closing is not None:
            due.append(self._closing)
        soonest = min(due)
        return None if soonest == math.inf else max(0.0, soonest - monotonic())

    def _quiet(self) -> bool:
        return self._session.idle and self._leaving is None

    def _pull(self) -> None:
        for _ in range(BATCH):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            self._take(_buffers(parts))
            self._arrive()  # at once: a breach by the next message must not take this one with it
            self._flush()
        self._arrive()

    def _arrive(self) -> None:
        while self._arriving and self._arriving[0][0] <= monotonic():
            self._inbox.put(self._arriving.popleft()[1])

    def _take(self, frames: list[Buffer]) -> None:
        parcel = self._session.take(frames)
        if self._down is not None and len(frames) == 3 and len(frames[2]):
            self._last = monotonic() + self._down(len(frames[2]))
        if parcel is not None:
            delivery = Delivery(self.device, self.incarnation, parcel.kind, parcel.header, parcel.blob)
            self._arriving.append((self._last if parcel.blob is not None else 0.0, delivery))

    def _pulse(self) -> None:
        now = monotonic()
        if now < self._next_beat:
            return
        busy = self._busy
        self._session.post(Kind.BEAT, {"busy": 0.0 if busy is None else round(now - busy, 3)})
        self._next_beat = now + self._beat

    def _flush(self) -> None:
        while (frames := self._session.give(urgent=True)) is not None:
            self._send(frames)
        while True:
            if self._leaving is None:
                following = self._session.give()
                if following is None:
                    return
                wait = self._up(len(following[2])) if self._up is not None and len(following[2]) else 0.0
                self._leaving = (monotonic() + wait, following) if wait > 0 else (0.0, following)
            due, frames = self._leaving
            if due > monotonic():
                return
            self._leaving = None
            self._send(frames)

    def _send(self, frames: list[Buffer]) -> None:
        self._socket.send_multipart(frames, copy=False)
        if self._next_beat == math.inf:
            self._next_beat = monotonic() + self._beat


def _prepare(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, QUEUED)
    socket.setsockopt(zmq.MAXMSGSIZE, CHUNK)
    socket.setsockopt(zmq.LINGER, int(LINGER * 1000))
