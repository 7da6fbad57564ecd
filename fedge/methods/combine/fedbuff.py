"""FedBuff: the server steps as soon as K answers are in, however old (Nguyen et al. 2021, arXiv 2106.06639).

``w ← w + η Σ_{k in buffer} s(τ_k) n_k Δ_k / Σ n_k`` with ``s(τ) = (1 + τ)^{−a}``, ``τ`` the number of server steps
since the device was asked, ``a = 1/2``. With K the whole cohort nothing is late and this is FedAvg.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import ClassVar

from fedge.core.fields import doc
from fedge.core.method import Ask, Card, Replies, Server, State
from fedge.methods.combine.around import Around
from fedge.methods.tuning import average


@dataclass(frozen=True, kw_only=True)
class FedBuff(Around):
    """A round ends with the first ``buffer`` answers, the rest arrive in later ones."""

    buffer: int = field(default=4, metadata=doc("K: answers that make a server step"))
    damping: float = field(default=0.5, metadata=doc("a: exponent by which stale changes are scaled down"))

    card: ClassVar[Card] = Card(
        name="FedBuff",
        summary="buffered asynchronous averaging: late answers count in a later round, scaled down",
        paper="Nguyen et al. 2021, arXiv 2106.06639",
        stages=("train", "customize"),
        path="combine",
        leaves=("what the inner method's card says",),
        deviations=("changes are weighted by rows; the paper weighs the buffer's members alike",),
        family="own",
    )

    def __post_init__(self) -> None:
        if self.buffer <= 0:
            raise ValueError(f"buffer must be above 0, not {self.buffer}")
        super().__post_init__()

    def round(self, srv: Server, state: State) -> Generator[Ask, Replies, State]:
        free = [device for device in srv.cohort if device not in srv.waiting]
        replies = yield Ask({d: self.down(srv, state, d) for d in free}, want=self.buffer, keep=True)
        return self.update(srv, state, replies) if replies else state

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        def freshness(device: str) -> float:
            return (1.0 + srv.round - replies.asked[device]) ** -self.damping

        return average(srv, state, replies, freshness)
