"""The answers of one turn: which of them came in time, and what an answer has to be to count at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedge.core.method import Ask
from fedge.core.payload import Payload
from fedge.errors import ProtocolError


@dataclass
class Late:
    """An answer that came too late for its turn and is kept for another; ``asked``: the round of its question."""

    arrival: float
    payload: Payload
    asked: int


@dataclass(frozen=True)
class Here:
    """An answer of this turn, its payload in memory or to be read; ``arrival`` in emulated seconds."""

    arrival: float
    payload: Payload | Callable[[], Payload]
    asked: int

    def whole(self) -> Late:
        """The same with its payload in memory, to be kept beyond its round."""
        return Late(self.arrival, self.payload if isinstance(self.payload, Payload) else self.payload(), self.asked)


@dataclass(frozen=True)
class Judged:
    """Devices whose answers count, those that came too late (both by arrival), and when the turn was over."""

    taken: tuple[str, ...]
    late: tuple[str, ...]
    finished: float


def judge(arrivals: Mapping[str, Here], ask: Ask, *, now: float, end: float, gone: int) -> Judged:
    """Decide by emulated arrival. now, end: when the turn began and when answers begin to be late.

    gone: how many of those asked will never answer, which the server can't know.
    """
    order = sorted(arrivals, key=lambda device: (arrivals[device].arrival, device))
    want = len(order) if ask.want is None else min(ask.want, len(order))
    taken = tuple([device for device in order if arrivals[device].arrival <= end][:want])
    awaited = len(order) + gone
    if len(taken) >= (awaited if ask.want is None else min(ask.want, awaited)) or end == math.inf:
        finished = max((arrivals[device].arrival for device in taken), default=now)
    else:  # the server can't know that nobody else will come, so it waits until the deadline
        finished = end
    counted = set(taken)
    return Judged(taken, tuple(device for device in order if device not in counted), max(now, finished))


def require_finite(payload: Payload) -> None:
    """Raise ProtocolError, naming the tensor, when an answer holds numbers that would spoil every average."""
    spoilt = payload.not_finite()
    if spoilt is not None:
        raise ProtocolError(f"its answer's {spoilt} holds numbers that are not finite")
