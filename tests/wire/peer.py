"""A device's process for the tests of the bus: answers every ASK with what came with it, until BYE."""

from __future__ import annotations

import sys

from fedge.wire.blobs import Blob
from fedge.wire.frames import Kind
from fedge.wire.line import Line


def main(address: str, device: str, incarnation: str) -> None:
    with Line(address, device, int(incarnation), beat=0.1) as line:
        line.post(Kind.HELLO, {"pid": True})
        while True:
            for delivery in line.receive(30):
                if delivery.kind is Kind.BYE:
                    line.post(Kind.BYE)
                    return
                blob = None if delivery.blob is None else Blob(delivery.blob)
                line.post(Kind.TELL, delivery.header, blob)


if __name__ == "__main__":
    main(*sys.argv[1:])
