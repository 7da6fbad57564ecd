"""What methods share that take another one, change when its answers count, and leave what is trained to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from fedge.core.fields import doc
from fedge.core.method import Device, Method, Server, State, Talk
from fedge.core.payload import Payload
from fedge.methods.make import make
from fedge.methods.tuning import Tuning, scaled


@dataclass(frozen=True, kw_only=True)
class Around(Method):
    """``inner`` says what is trained; it must train tensors of one model."""

    inner: str | Tuning = field(default="fedavg", metadata=doc("the method whose changes are used"))
    steps: int | None = field(default=None, metadata=doc("optimizer steps a round, for the inner method"))
    batch: int | None = field(default=None, metadata=doc("rows in a step, for the inner method"))
    lr: float | None = field(default=None, metadata=doc("learning rate on the device, for the inner method"))

    def __post_init__(self) -> None:
        names = ("steps", "batch", "lr")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        inner = make(self.inner, given) if isinstance(self.inner, str) else self.inner
        if not isinstance(inner, Tuning) or inner.card.family != "tensors":
            raise ValueError(f"'{inner.card.name}' does not train tensors of one model and can't be buffered")
        object.__setattr__(self, "inner", inner)
        if inner.card.final != "plain":
            object.__setattr__(self, "card", replace(type(self).card, final=inner.card.final))

    @property
    def trains(self) -> Tuning:
        """The inner method."""
        assert isinstance(self.inner, Tuning)
        return self.inner

    def variants(self) -> Sequence[Method]:
        return [replace(self, inner=v) for v in scaled(self.trains.variants()) if isinstance(v, Tuning)]

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

    def final(self, srv: Server, state: State) -> nn.Module:
        return self.trains.final(srv, state)

    def adapter(self, srv: Server, state: State) -> nn.Module | None:
        return self.trains.adapter(srv, state)
