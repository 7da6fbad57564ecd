"""Training alone: what a device reaches with its own rows and nothing of the others', as a figure to compare with.

Every device trains the tensors of ``inner`` round after round as the federated method would, and nothing is averaged.
What the stage leaves for all is its base; what has been learnt are the devices' own models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import nn

from fedge.core.method import Card, Device, Method, Replies, Server, State
from fedge.core.payload import Payload, Tree
from fedge.methods.make import make
from fedge.methods.tuning import Tuning, doc, start_of
from fedge.models.lora import merge


@dataclass(frozen=True, kw_only=True)
class Local(Method):
    """The same steps on the same rows as with ``inner``, so that the difference is what the others are worth."""

    inner: str | Tuning = field(default="lora", metadata=doc("the method whose tensors each device trains for itself"))
    steps: int | None = field(default=None, metadata=doc("optimizer steps a round, for the inner method"))
    batch: int | None = field(default=None, metadata=doc("rows in a step, for the inner method"))
    lr: float | None = field(default=None, metadata=doc("learning rate, for the inner method"))

    card: ClassVar[Card] = Card(
        name="Training alone",
        summary="no federation: each device trains a model of its own, for comparison",
        paper="the baseline 'local only' of the personalisation papers (such as arXiv 2012.04221)",
        stages=("train", "customize"),
        path="customize/baseline",
        leaves=("the number of rows, and nothing of what was learnt",),
        deviations=("the optimizer starts anew each round, as it does in the federated methods",),
        alternatives=("ditto", "fedper"),
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        names = ("steps", "batch", "lr")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        inner = make(self.inner, given) if isinstance(self.inner, str) else self.inner
        if not isinstance(inner, Tuning) or inner.card.family != "tensors":
            raise ValueError(f"'{inner.card.name}' does not train tensors of one model, so no device can do it alone")
        if inner.calibrate:
            raise ValueError("calibrate is for one model of all labels, and each device has its own: it is 0")
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
        return {}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        return Payload()

    def client(self, dev: Device, down: Payload) -> Payload:
        self.trains.train(dev, dev.task.loss, self.resume(dev))
        dev.state["own"] = start_of(dev.model)
        return Payload(weight=len(dev.data))

    def resume(self, dev: Device) -> Tree:
        """Put the device where it was after the last round that it took part in."""
        return self.trains.enter(dev, Payload({"weights": dev.state.get("own", {})}))

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        return state

    def final(self, srv: Server, state: State) -> nn.Module:
        return srv.copy()

    def personal(self, dev: Device, down: Payload) -> nn.Module:
        self.resume(dev)
        return merge(dev.model)
