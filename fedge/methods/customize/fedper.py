"""FedPer: a common body, and on each device a head that never leaves it (Arivazhagan et al. 2019, arXiv 1912.00818)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from fedge.core.method import Card, Device, Method, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.methods.tuning import Tuning, leave
from fedge.models.anatomy import anatomy
from fedge.models.names import attach, load, trainable


@dataclass(frozen=True, kw_only=True)
class FedPer(Tuning):
    """Body and head are trained together; the body is averaged, the head stays in ``dev.state``."""

    card: ClassVar[Card] = Card(
        name="FedPer",
        summary="the body is averaged, each device keeps a head of its own",
        paper="Arivazhagan et al. 2019, arXiv 1912.00818",
        stages=("customize",),
        path="customize/fine-tune/personalised",
        leaves=("the change of the body's weights", "number of rows"),
        deviations=(
            "what the stage leaves for all is the averaged body under the base's untrained head; a device's own model "
            "is its personal one",
            "a fixed number of local steps rather than an epoch",
        ),
        tasks=("image-classification", "text-classification"),
        alternatives=("fedavg", "ditto"),
    )
    linear: ClassVar[bool] = True

    def variants(self) -> Sequence[Method]:
        lean = replace(self, micro_batch=max(1, self.batch // 4))
        return [self, lean, replace(lean, depth=self.depth / 2), replace(lean, depth=self.depth / 6)]

    def build(self, base: nn.Module) -> nn.Module:
        return self.mark(base, lambda name, layer: True)

    def init(self, srv: Server) -> State:
        state = super().init(srv)
        own = heads(srv.base())
        return {**state, "weights": {n: t for n, t in state["weights"].items() if not n.startswith(own)}}

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        start = self.enter(dev, down)
        load(dev.model, dev.state.get("head", {}))
        self.local(dev, start)
        own = heads(dev.model)
        parameters = trainable(dev.model)
        dev.state["head"] = {n: p.detach().clone() for n, p in parameters.items() if n.startswith(own)}
        sent = leave(dev, start)
        return Payload({"delta": {n: t for n, t in sent["delta"].items() if not n.startswith(own)}}, sent.weight)

    def local(self, dev: Device, start: Tree) -> None:
        """The round's training of body and head."""
        self.train(dev, dev.task.loss, start)

    def personal(self, dev: Device, down: Payload) -> nn.Module:
        attach(dev.model, down["weights"])
        load(dev.model, dev.state.get("head", {}))
        return dev.model


def heads(model: nn.Module) -> tuple[str, ...]:
    """What the names of the head's tensors begin with."""
    return anatomy(model).head_prefixes
