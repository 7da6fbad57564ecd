"""A device's socket: Line, with a thread of its own."""

from __future__ import annotations

import math
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import zmq

from fedge.errors import FedgeError
from fedge.wire.blobs import LIMIT, WINDOW, Blob
from fedge.wire.bus import BATCH, LINGER, buffers, check_address, milliseconds, prepare
from fedge.wire.exchange import Delivery, identify
from fedge.wire.frames import Buffer, Kind
from fedge.wire.keys import DeviceKey
from fedge.wire.session import FROM_COORDINATOR, Counts, Session
from fedge.wire.weather import Weather

if TYPE_CHECKING:
    from fedge.wire.curve import Watch

Pace: TypeAlias = Callable[[int, Mapping[str, Any]], float]


class Severed(FedgeError):
    """A device's connection over tcp is gone, or never was; ``final``: there is no use in trying again."""

    def __init__(self, message: str, *, final: bool = False):
        super().__init__(message)
        self.final = final


class Line:
    """A device's end. A thread of its own owns the socket, so the work thread may compute for as long as it likes.
    ``bell`` is a descriptor that can be read when ``receive`` has something to give.

    ``post`` and ``receive`` are for the work thread; ``weather`` is what faults do to the frames. The device has to
    post a HELLO first; heartbeats begin after it, and say under ``busy`` for how many seconds the work thread has not
    asked for anything.
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
        key: DeviceKey | None = None,
        hurried: Callable[[], None] | None = None,
    ):
        """Nothing is opened before ``start``.

        ``limit`` is the largest blob to accept, ``window`` what may be under way, in bytes; ``beat`` is in seconds.
        ``up`` and ``down`` pace the link: told the bytes of a chunk and the header of the message that it belongs to,
        each says in how many seconds it may pass. An EVENT with ``hurry`` in its header lets everything pass that
        waits; ``hurried`` is told, in the line's thread.
        ``key``: what tcp has to have. Over tcp a connection that breaks ends the line: ``receive`` raises Severed.
        """
        check_address(address, key)
        self.address = address
        self.device = device
        self.incarnation = incarnation
        self.weather = Weather()
        self._identity = identify(device, incarnation)
        self._session = Session(FROM_COORDINATOR, limit=limit, window=window)
        self._beat = beat
        self._up = up
        self._down = down
        self._hurried = hurried
        self._inbox: queue.SimpleQueue[Delivery | BaseException] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._busy: float | None = None  # since when the work thread works
        self._next_beat = math.inf
        self._leaving: tuple[float, list[Buffer]] | None = None  # a chunk that waits for its pace
        self._arriving: deque[tuple[float, Delivery]] = deque()  # likewise
        self._last = 0.0  # when the last chunk that came may be seen; until then nothing more is read
        self._closing: float | None = None
        self._linger = LINGER
        self._thread: threading.Thread | None = None
        self._key = key
        self._watch: Watch | None = None

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
        self.bell, self._ring = os.pipe()
        os.set_blocking(self.bell, False)
        os.set_blocking(self._ring, False)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        prepare(self._socket, self.address)
        self._socket.setsockopt(zmq.IDENTITY, self._identity)
        if self._key is not None:
            from fedge.wire.curve import Watch

            self._watch = Watch(self._socket, self._key)
        try:
            self._socket.connect(self.address)
        except zmq.ZMQError as error:
            self._end()
            raise Severed(f"{self.address}: {error}", final=True) from None
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
        with suppress(BlockingIOError):  # before what is there is taken: a ring that comes later stays
            os.read(self.bell, 4096)
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
        for end in (self._wake, self._waker, self.bell, self._ring):
            os.close(end)

    def _nudge(self) -> None:
        with suppress(BlockingIOError):  # the pipe may be full of earlier nudges
            os.write(self._wake, b"!")

    # From here on: the thread that owns the socket.

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._hand_over(error)
        finally:
            self._end()

    def _end(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._socket.close(linger=milliseconds(self._linger))
        self._context.term()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._waker, zmq.POLLIN)
        if self._watch is not None:
            poller.register(self._watch.socket, zmq.POLLIN)
        deaf = zmq.Poller()
        deaf.register(self._waker, zmq.POLLIN)
        while True:
            held, rest = self.weather.held, self._rest()
            # what a slow link would not have brought yet stays in the socket
            listening = deaf if held or monotonic() < self._last else poller
            # down to the millisecond by polling, and what is left of it asleep: a link's latency may be a few of them
            whole = milliseconds(held) if held else None if rest is None else math.floor(rest * 1000)
            for ready, _ in listening.poll(whole):
                if ready == self._waker:
                    os.read(self._waker, 4096)
            if self.weather.held and self._closing is None:
                continue
            if rest is not None and 0 < (left := self._rest() or 0.0) < 0.001:
                sleep(left)
            self._pull()
            self._check_connection()
            self._pulse()
            self._flush()
            if self._closing is not None and (self._quiet() or monotonic() >= self._closing):
                return

    def _check_connection(self) -> None:
        ended = None if self._watch is None else self._watch.ended()
        if ended is not None:
            why, final = ended
            self._linger = 0.0
            raise Severed(f"{self.address}: {why}", final=final)

    def _rest(self) -> float | None:
        """Seconds until something is due without anything arriving; None if nothing ever is."""
        due = [self._next_beat, *([self._last] if self._last > monotonic() else [])]
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
            if monotonic() < self._last:
                break
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            self._take(buffers(parts))
            self._arrive()  # at once: a breach by the next message must not take this one with it
            self._flush()
        self._arrive()

    def _arrive(self) -> None:
        while self._arriving and self._arriving[0][0] <= monotonic():
            self._hand_over(self._arriving.popleft()[1])

    def _hand_over(self, item: Delivery | BaseException) -> None:
        self._inbox.put(item)
        with suppress(BlockingIOError):
            os.write(self._ring, b"!")

    def _take(self, frames: list[Buffer]) -> None:
        parcel = self._session.take(frames)
        if parcel is not None and parcel.kind is Kind.EVENT and parcel.header.get("hurry"):
            self._hurry()
            return
        if self._down is not None and len(frames) == 3 and len(frames[2]):
            header = self._session.arriving if parcel is None else parcel.header
            self._last = monotonic() + self._down(len(frames[2]), header)
        if parcel is not None:
            delivery = Delivery(self.device, self.incarnation, parcel.kind, parcel.header, parcel.blob)
            self._arriving.append((self._last if parcel.blob is not None else 0.0, delivery))

    def _hurry(self) -> None:
        self._last = 0.0
        self._arriving = deque((0.0, delivery) for _, delivery in self._arriving)
        if self._leaving is not None:
            self._leaving = (0.0, self._leaving[1])
        if self._hurried is not None:
            self._hurried()

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
                wait = 0.0
                if self._up is not None and len(following[2]):
                    wait = self._up(len(following[2]), self._session.leaving)
                self._leaving = (monotonic() + wait, following) if wait > 0 else (0.0, following)
            due, frames = self._leaving
            if due > monotonic():
                return
            self._leaving = None
            self._send(frames)

    def _send(self, frames: list[Buffer]) -> None:
        self._socket.send_multipart(self.weather.through(frames), copy=False)
        if self._next_beat == math.inf:
            self._next_beat = monotonic() + self._beat
