"""The answers of one turn: which of them came in time, and what an answer has to be to count at all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from fedge.core.method import Ask
from fedge.core.payload import Payload
from fedge.errors import ProtocolError
from fedge.plan.outline import Outline, outline_of
from fedge.plan.rehearsal import Setting
from fedge.run.brief import Brief


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


class Outlines:
    """What the answers of each offer of a stage are made of, traced when the first answer to it comes."""

    def __init__(self, brief: Brief, setting: Setting):
        self._brief = brief
        self._setting = setting
        self._known: dict[int, Outline | None] = {}

    def require(self, offer: int, answer: Payload) -> None:
        """Raise ProtocolError, naming the tensor, for an answer that no device with this offer gives.

        Nothing is asked of offers whose answers can't be known before (``plan.outline``).
        """
        if offer not in self._known:
            self._known[offer] = outline_of(self._brief.method, self._brief.variants[offer], self._setting)
        outline = self._known[offer]
        wrong = None if outline is None else outline.wrong(answer)
        if wrong is not None:
            raise ProtocolError(wrong)


def odd_ones(
    answers: Mapping[str, Payload], suspects: Collection[str], offers: Mapping[str, int | None]
) -> dict[str, str]:
    """Those of ``suspects`` whose answers have other tensors than everyone's who took the same offer, and how so.

    What those answer who are no suspects is right; where there are none of them, what most answer is.
    """
    outlines = {device: payload.cells for device, payload in answers.items()}
    found = {}
    for device in sorted(set(suspects) & set(answers)):
        alike = [other for other in answers if other != device and offers.get(other) == offers.get(device)]
        sure = [outlines[other] for other in alike if other not in suspects]
        right = set(sure)
        if not sure and (told := Counter(outlines[other] for other in alike).most_common(1)) and told[0][1] > 1:
            right = {told[0][0]}
        if right and outlines[device] not in right:
            theirs = next(iter(right))
            wrong = sorted(outlines[device] - theirs) or sorted(theirs - outlines[device])
            role, name, dtype, shape = wrong[0]
            what = "has" if wrong[0] in outlines[device] else "lacks"
            found[device] = f"its answer {what} {role} '{name}' as {dtype} {list(shape)}, unlike everyone's"
    return found
