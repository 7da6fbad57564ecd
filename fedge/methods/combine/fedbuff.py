"""FedBuff: the server steps as soon as K answers are in, however old (Nguyen et al. 2021, arXiv 2106.06639).

``w ← w + η Σ_{k in buffer} s(τ_k) n_k Δ_k / Σ n_k`` with ``s(τ) = (1 + τ)^{−a}``, ``τ`` the number of server steps
since the device was asked, ``a = 1/2``. With K the whole cohort nothing is late and this is FedAvg.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import nn

from fedge.core.method import Ask, Card, Device, Method, Replies, Server, State, Talk
from fedge.core.payload import Payload
from fedge.methods.make import make
from fedge.methods.tuning import Tuning, average, doc


@dataclass(frozen=True, kw_only=True)
class FedBuff(Method):
    """``inner`` says what is trained; a round ends with the first ``buffer`` answers, the rest arrive in later ones."""

    inner: str | Tuning = field(default="fedavg", metadata=doc("the method whose changes are buffered"))
    buffer: int = field(default=4, metadata=doc("K: answers that make a server step"))
    damping: float = field(default=0.5, metadata=doc("a: exponent by which stale changes are scaled down"))
    steps: int | None = field(default=None, metadata=doc("optimizer steps a round, for the inner method"))
    batch: int | None = field(default=None, metadata=doc("rows in a step, for the inner method"))
    lr: float | None = field(default=None, metadata=doc("learning rate on the device, for the inner method"))

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
        names = ("steps", "batch", "lr")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        inner = make(self.inner, given) if isinstance(self.inner, str) else self.inner
        if not isinstance(inner, Tuning) or inner.card.family != "tensors":
            raise ValueError(f"'{inner.card.name}' does not train tensors of one model and can't be buffered")
        object.__setattr__(self, "inner", inner)

    @property
    def trains(self) -> Tuning:
        assert isinstance(self.inner, Tuning)
        return self.inner

    def variants(self) -> Sequence[Method]:
        return [replace(self, inner=variant) for variant in self.trains.variants()]

    def working(self, round: int) -> Method:
        return self.trains

    def build(self, base: nn.Module) -> nn.Module:
        return self.trains.build(base)

    def init(self, srv: Server) -> State:
        return self.trains.init(srv)

    def down(self, srv: Server, state: State, device: str) -> Payload:
        return self.trains.down(srv, state, device)

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        return self.trains.client(dev, down)

    def round(self, srv: Server, state: State) -> Generator[Ask, Replies, State]:
        free = [device for device in srv.cohort if device not in srv.waiting]
        replies = yield Ask({d: self.down(srv, state, d) for d in free}, want=self.buffer, keep=True)
        return self.update(srv, state, replies) if replies else state

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        def freshness(device: str) -> float:
            return (1.0 + srv.round - replies.asked[device]) ** -self.damping

        return average(srv, state, replies, freshness)

    def final(self, srv: Server, state: State) -> nn.Module:
        return self.trains.final(srv, state)

    def adapter(self, srv: Server, state: State) -> nn.Module | None:
        return self.trains.adapter(srv, state)
