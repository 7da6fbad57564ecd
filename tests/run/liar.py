"""A device with a key of its own that answers its first question by numbers that are not finite; says what it hears.

liar.py ADDRESS KEYFILE
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

import fedge
from fedge.core.payload import Payload
from fedge.wire.blobs import Blob
from fedge.wire.frames import Kind
from fedge.wire.keys import DeviceKey
from fedge.wire.line import Line, Severed

CHOICE = {"index": 0, "reason": "it fits", "runner_up": None, "refused": {}}


def main(address: str, file: str) -> None:
    key = DeviceKey.read(Path(file))
    for incarnation in range(1, 100):
        with Line(address, key.device, incarnation, key=key) as line:
            try:
                line.post(Kind.HELLO, {"fedge": fedge.__version__, "token": "liar", "stage": -1})
                talk(line)
                return
            except Severed:
                time.sleep(0.5)


def talk(line: Line) -> None:
    while True:
        for delivery in line.receive(1.0):
            header = delivery.header
            if "stage" in header:
                line.post(Kind.EVENT, {"staged": header["stage"]})
            elif delivery.kind is Kind.PREPARE:
                line.post(Kind.READY, {"choice": CHOICE})
            elif delivery.kind is Kind.ASK:
                spoilt = Payload({"delta": {"classifier.weight": torch.full((10, 16), float("nan"))}}, 1.0)
                told = {"round": header["round"], "turn": 0, "done": True, "stateful": None, "peak": 1, "noted": {}}
                line.post(Kind.TELL, told, Blob(spoilt.to_bytes()))
            elif delivery.kind in (Kind.FAIL, Kind.BYE):
                print(json.dumps({"kind": delivery.kind.name, **header}))
                return


if __name__ == "__main__":
    main(*sys.argv[1:])
