"""Somebody who may not come in, as a process of its own: says how many bytes it was given, and how it ended.

    intruder.py ADDRESS none|foreign|ID KEYFILE [SECONDS]

``none`` speaks no CURVE, ``foreign`` has a pair of its own making, and any other word is the identity that it takes
under the key in KEYFILE. Each says HELLO and asks for what a device would get.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import zmq

from fedge.wire.frames import Kind, Message, encode
from fedge.wire.keys import DeviceKey


def main(address: str, how: str, file: str, seconds: str = "1.5") -> None:
    key = DeviceKey.read(Path(file))
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    if how != "none":
        socket.setsockopt(zmq.CURVE_SERVERKEY, key.coordinator.encode())
        pair = (key.pair.public.encode(), key.pair.secret.encode())
        public, secret = zmq.curve_keypair() if how == "foreign" else pair
        socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
    identity = f"{key.device}.{10**17 + 5}" if how in ("none", "foreign") else how
    socket.setsockopt(zmq.IDENTITY, identity.encode())
    monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    socket.connect(address)
    for kind in (Kind.HELLO, Kind.READY, Kind.BEAT):
        socket.send_multipart(encode(Message(kind, {})))
    got, until = 0, time.monotonic() + float(seconds)
    while (left := until - time.monotonic()) > 0:
        if socket.poll(int(left * 1000) + 1):
            got += sum(len(part) for part in socket.recv_multipart())
    print(json.dumps({"bytes": got, "in": bool(monitor.poll(0))}))
    socket.disable_monitor()
    monitor.close(linger=0)
    socket.close(linger=0)
    context.term()


if __name__ == "__main__":
    main(*sys.argv[1:])
