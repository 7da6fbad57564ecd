"""Two processes and a paced line between them: a coordinator's hub here, a device's line in a child."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

from fedge.emulation.link import Link, transfer_seconds
from fedge.emulation.pace import Pacer, Timing, Turn, later
from fedge.emulation.process import die_with_parent
from fedge.errors import FedgeError
from fedge.wire.blobs import Blob
from fedge.wire.bus import Hub
from fedge.wire.exchange import Delivery
from fedge.wire.frames import Kind
from fedge.wire.line import Line

DEVICE = "paced"
#: Seconds after which an answer is given up beyond what the link should take.
PATIENCE = 30.0


class Ends:
    """The hub, and the device behind its link."""

    def __init__(self, hub: Hub, link: Link):
        self.hub = hub
        self.link = link

    def exchange(self, down: int, up: int) -> tuple[float, float]:
        """Seconds that a question of so many bytes took to be there, and its answer to be here."""
        start = monotonic() + 0.02
        turn = Turn(Timing(0.0, 0.0, down, 0.0, 0.5, 0.5), start)
        self.hub.post(DEVICE, Kind.ASK, {"pace": turn.to_json(), "answer": up}, Blob(bytearray(down)))
        told, arrived = self.answer(PATIENCE + transfer_seconds(down, self.link, "down") * 2 + up * 16 / self.link.up)
        return told.header["got"] - start, arrived - told.header["sent"]

    def stream(self, piece: int, seconds: float, start: float) -> Iterator[tuple[float, int]]:
        """Pieces that the device sends one after another for so long: when each came after ``start``, its bytes."""
        self.hub.post(DEVICE, Kind.EVENT, {"stream": piece, "seconds": seconds, "start": start})
        while True:
            told, arrived = self.answer(PATIENCE + seconds)
            if told.header.get("over"):
                return
            yield arrived - start, len(told.blob or b"")

    def answer(self, seconds: float) -> tuple[Delivery, float]:
        """The device's next answer and when it came."""
        end = monotonic() + seconds
        while (left := end - monotonic()) > 0:
            for event in self.hub.receive(min(left, 1.0)):
                if isinstance(event, Delivery) and event.kind is Kind.TELL:
                    return event, monotonic()
                if isinstance(event, Delivery) and event.kind is Kind.FAIL:
                    raise FedgeError(f"the paced process failed: {event.header['message']}")
        raise FedgeError(f"no answer over the paced line within {seconds:.0f} s")


@contextmanager
def ends(link: Link) -> Iterator[Ends]:
    """A hub with a device that answers whatever it is asked, over ``link``."""
    with Hub() as hub:
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            try:
                die_with_parent(parent=parent)
                _answer(hub.address, link)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        try:
            while not any(isinstance(event, Delivery) for event in hub.receive(PATIENCE)):
                pass
            yield Ends(hub, link)
        finally:
            hub.post(DEVICE, Kind.BYE)
            os.waitpid(child, 0)


def _answer(address: str, link: Link) -> None:
    """The device: takes a question and sends its answer, each at the pace of the link."""
    pacer = Pacer()
    pacer.link = link
    with Line(address, DEVICE, 1, up=pacer.up, down=pacer.down, hurried=pacer.hurry) as line:
        line.post(Kind.HELLO)
        while True:
            for told in line.receive():
                if told.kind is Kind.BYE:
                    return
                if "stream" in told.header:
                    _stream(line, link, told.header)
                elif told.kind is Kind.ASK:
                    got = monotonic()
                    turn = Turn.from_json(told.header["pace"])
                    behind = max(0.0, monotonic() - turn.wall(turn.computed(link)))
                    turn = later(turn, behind)
                    about = {"got": got, "sent": turn.wall(turn.computed(link)), "pace": turn.to_json()}
                    line.post(Kind.TELL, about, Blob(bytearray(told.header["answer"])))


def _stream(line: Line, link: Link, told: dict[str, Any]) -> None:
    turn = Turn(Timing(0.0, 0.0, 0, 0.0, 0.5, 0.5), told["start"])
    piece, sent = Blob(bytearray(told["stream"])), 0.0
    while sent < told["seconds"]:
        turn = replace(turn, timing=replace(turn.timing, start=sent))
        line.post(Kind.TELL, {"pace": turn.to_json()}, piece)
        sent += transfer_seconds(piece.length, link, "up", 0.5, sent)
    line.post(Kind.TELL, {"over": True})
