"""CURVE on ZeroMQ's sockets: pairs of keys, the gate at the coordinator, and a device's end.

Every connection has keys of its own, made by CURVE's handshake; the long-lived pairs only say who is who. ``Gate``
answers ZeroMQ's questions (ZAP, through ``zmq.auth``) from a Keyring and keeps count of whom it turned away; a client
without a key, or with one that isn't listed, never gets as far as a message.
"""

from __future__ import annotations

import logging
from collections import Counter
from time import monotonic
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from fedge.errors import FedgeError
from fedge.wire.keys import DeviceKey, Keyring, Pair

DOMAIN = "fedge"
#: Seconds that a client may take to prove who it is, between two signs of life, and until a silent peer is gone.
HANDSHAKE, ALIVE, SILENT = 5.0, 5.0, 20.0
#: Handshakes that one key may make in a row, and how many more a second.
BURST, AGAIN = 20, 0.5

_FAILED = {zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL}
_ENDED = {zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED, zmq.EVENT_HANDSHAKE_FAILED_AUTH, *_FAILED}


def new_pair() -> Pair:
    """A new pair from the operating system's randomness."""
    public, secret = zmq.curve_keypair()
    return Pair(public.decode("ascii"), secret.decode("ascii"))


class Gate:
    """Lets in whom a Keyring lists. ``refused`` counts the others: by a key that isn't listed (``key``), by one that
    came too often (``often``), and those who speak no CURVE or not with this coordinator's key (``handshake``)."""

    def __init__(self, socket: zmq.Socket[bytes], keyring: Keyring):
        """Prepare a socket that is not bound yet."""
        self.keyring = keyring
        self.refused: Counter[str] = Counter()
        self._tries: dict[str, tuple[float, float]] = {}
        own = keyring.own()
        self._authenticator = ThreadAuthenticator(socket.context, log=_silent())
        self._authenticator.configure_curve_callback(DOMAIN, credentials_provider=self)
        self._authenticator.start()
        _keep_alive(socket)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode("ascii"))
        socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN.encode("ascii"))
        self._monitor = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        self._socket = socket

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client with this public key in Z85 may come in; called by zmq.auth, from its thread."""
        public = key.decode("ascii", "replace")
        try:
            device = self.keyring.device_of(public)
        except FedgeError:  # a list that can't be read lets nobody in; `device` says so to the run
            device = None
        if device is None:
            self.refused["key"] += 1
            return False
        now = monotonic()
        left, before = self._tries.get(public, (float(BURST), now))
        left = min(float(BURST), left + (now - before) * AGAIN)
        self._tries[public] = (max(0.0, left - 1.0), now)
        if left < 1.0:
            self.refused["often"] += 1
            return False
        return True

    def device(self, frame: zmq.Frame) -> str:
        """The device whose key the sender of a message has; '' where its key was revoked since."""
        return self.keyring.device_of(str(frame.get("User-Id"))) or ""

    def look(self) -> None:
        """Take note of the handshakes that failed since."""
        while self._monitor.poll(0):
            recv_monitor_message(self._monitor)
            self.refused["handshake"] += 1

    def close(self) -> None:
        """Stop before the socket is closed."""
        self.look()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._authenticator.stop()


class Watch:
    """A device's end of a connection over tcp: its keys on a socket, and how the connection ends."""

    def __init__(self, socket: zmq.Socket[bytes], key: DeviceKey):
        """Prepare a socket that is not connected yet. It connects once: whoever comes back does so by a new one."""
        _keep_alive(socket)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, key.pair.public.encode("ascii"))
        socket.setsockopt(zmq.CURVE_SECRETKEY, key.pair.secret.encode("ascii"))
        socket.setsockopt(zmq.CURVE_SERVERKEY, key.coordinator.encode("ascii"))
        self._socket = socket
        self.socket: Any = socket.get_monitor_socket()
        self._connected = False

    def ended(self) -> tuple[str, bool] | None:
        """Why there is no connection any more, and whether it is of no use to try again; None while there is one."""
        why = None
        while self.socket.poll(0):
            event = recv_monitor_message(self.socket)["event"]
            self._connected = self._connected or event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return "the coordinator lets nobody in with this key (revoked, made anew, or called too often)", True
            if event in _FAILED:
                why = "it is not the coordinator that this key is for"
            elif event in _ENDED and why is None:
                why = "the connection broke" if self._connected else "nobody answers"
        return None if why is None else (why, False)

    def close(self) -> None:
        """Stop before the socket is closed."""
        self._socket.disable_monitor()
        self.socket.close(linger=0)


def _keep_alive(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.HANDSHAKE_IVL, int(HANDSHAKE * 1000))
    socket.setsockopt(zmq.HEARTBEAT_IVL, int(ALIVE * 1000))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(SILENT * 1000))


def _silent() -> logging.Logger:
    log = logging.getLogger("fedge.wire.curve")
    log.propagate = False
    log.addHandler(logging.NullHandler())
    return log
