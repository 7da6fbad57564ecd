"""What a fault does to the frames of one line: it holds them back for a time, or flips a bit of one. No I/O.

Told by the thread that works, or by a signal's handler; asked by the thread that owns the socket.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from time import monotonic

from fedge.wire.frames import Buffer


class Weather:
    """Fair until told otherwise."""

    def __init__(self) -> None:
        self._until = 0.0
        self._spoil: random.Random | None = None

    def cut(self, seconds: float) -> None:
        """From now on nothing passes, in neither direction, for so many seconds of the wall clock."""
        self._until = max(self._until, monotonic() + seconds)

    def spoil(self, seed: str = "") -> None:
        """Flip one bit in the body of the next frame that leaves and has one; ``seed`` says which."""
        self._spoil = random.Random(seed)

    @property
    def held(self) -> float:
        """Seconds for which nothing passes; 0.0 in fair weather."""
        return max(0.0, self._until - monotonic())

    def through(self, frames: Sequence[Buffer]) -> list[Buffer]:
        """The frames of one message as they arrive at the other end."""
        if self._spoil is None or not len(frames[2]):
            return list(frames)
        chance, self._spoil = self._spoil, None
        body = bytearray(frames[2])
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
        return [frames[0], frames[1], body]
