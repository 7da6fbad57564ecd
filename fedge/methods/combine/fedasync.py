"""FedAsync: each answer is mixed into the server's model as it comes (Xie et al. 2019, arXiv 1903.03934, algorithm 1).

``x_t ← (1 − α_t) x_{t−1} + α_t x_new`` with ``α_t = α s(t − τ)``, ``τ`` the server's step at which a device was asked:

    constant    s = 1
    polynomial  s = (t − τ + 1)^{−a}
    hinge       s = 1 if t − τ ≤ b else 1 / (a (t − τ − b) + 1)

A device sends where its tensors stand, not by how much they moved: the server's model has gone on meanwhile. A tensor
that it does not train stays.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fedge.core.fields import doc
from fedge.core.method import Ask, Card, Device, Replies, Server, State
from fedge.core.payload import Payload
from fedge.methods.combine.around import Around


@dataclass(frozen=True, kw_only=True)
class FedAsync(Around):
    """A round ends with the first answer; who gave it is asked again in the next one, from the model as it is then."""

    mixing: float = field(default=0.6, metadata=doc("alpha: how much of a fresh answer is mixed in"))
    staleness: Literal["constant", "polynomial", "hinge"] = field(
        default="polynomial", metadata=doc("how an old answer counts less", "constant", "polynomial", "hinge")
    )
    a: float = field(default=0.5, metadata=doc("exponent of polynomial, slope of hinge"))
    b: int = field(default=4, metadata=doc("for hinge: steps up to which an answer counts in full"))

    card: ClassVar[Card] = Card(
        name="FedAsync",
        summary="asynchronous: each answer is mixed into the model as it comes, old ones less",
        paper="Xie et al. 2019, arXiv 1903.03934",
        stages=("train", "customize"),
        path="combine",
        leaves=("every trained weight", "number of rows"),
        deviations=(
            "a tensor trained in part is mixed in that part",
            "the server optimizer is not used",
            "the pull towards the server's model is the inner method's prox, none unless it is given",
        ),
        roles=("weights",),
        family="own",
    )

    def __post_init__(self) -> None:
        if not 0 < self.mixing <= 1 or self.a < 0 or self.b < 0:
            raise ValueError(f"mixing in (0, 1], a and b of at least 0, not {self.mixing}, {self.a}, {self.b}")
        if self.staleness not in ("constant", "polynomial", "hinge"):
            raise ValueError(f"staleness is constant, polynomial or hinge, not {self.staleness!r}")
        super().__post_init__()

    def client(self, dev: Device, down: Payload) -> Payload:
        moved = self.trains.client(dev, down)
        if not isinstance(moved, Payload):
            raise TypeError("an inner method that talks in several turns")
        stands = {}
        for name, change in moved["delta"].items():
            start = down["weights"].get(name, dev.initial[name])
            stands[name] = change.add_(start[tuple(slice(0, size) for size in change.shape)])
        return Payload({"weights": stands}, weight=moved.weight)

    def round(self, srv: Server, state: State) -> Generator[Ask, Replies, State]:
        free = [device for device in srv.cohort if device not in srv.waiting]
        replies = yield Ask({d: self.down(srv, state, d) for d in free}, want=1, keep=True)
        return self.update(srv, state, replies) if replies else state

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        weights, changed = dict(state["weights"]), set(state["changed"])
        for device, reply in replies.items():
            share = self.mixing * self.fresh(srv.round - replies.asked[device])
            for name, stands in reply["weights"].items():
                full = weights[name].clone()
                block = full[tuple(slice(0, size) for size in stands.shape)]
                block.mul_(1 - share).add_(stands, alpha=share)
                weights[name] = full
                changed.add(name)
        return {**state, "weights": weights, "changed": sorted(changed)}

    def fresh(self, age: int) -> float:
        """``s``: what an answer counts that was asked for so many server steps ago."""
        if self.staleness == "polynomial":
            return float((age + 1) ** -self.a)
        if self.staleness == "hinge" and age > self.b:
            return 1.0 / (self.a * (age - self.b) + 1)
        return 1.0
