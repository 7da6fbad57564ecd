"""Federated inference: devices answer queries together, each from the exit that it can afford.

The survey of federated foundation models (arXiv 2509.05142) reads Liu et al. 2022 (arXiv 2212.04084) so: a prediction
is the average of the clients' predictions. Nothing is trained. In each round the next ``queries`` rows go to the
cohort's devices, as a model takes them; a device answers by the logits of its deepest exit, and whoever is in time
counts::

    p(y | x) = Σ_k w_k(x) softmax(z_k(x)) / Σ_k w_k(x)

w_k = 1 (uniform), or the device's own confidence ``max_y softmax(z_k(x))_y``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedge.core.fields import doc
from fedge.core.fit import Batch
from fedge.core.method import Card, Device, Method, Replies, Server, State
from fedge.core.payload import Payload
from fedge.errors import MethodError
from fedge.models.exits import MultiExit

WEIGHINGS = ("uniform", "confidence")


@dataclass(frozen=True, kw_only=True)
class Ensemble(Method):
    """Queries down, logits up; the variants leave at a shallower exit."""

    exits: tuple[int, ...] = field(default=(2, 4, 6), metadata=doc("blocks after which a model without exits gets one"))
    deepest: int | None = field(default=None, metadata=doc("the exit at which this device answers"))
    queries: int = field(default=32, metadata=doc("queries a round"))
    batch: int = field(default=8, metadata=doc("queries at once on a device"))

    card: ClassVar[Card] = Card(
        name="Federated inference",
        summary="devices answer queries together, each from its own exit; predictions are averaged",
        paper="the survey's (arXiv 2509.05142) reading of Liu et al. 2022, arXiv 2212.04084",
        stages=("deploy",),
        path="deploy",
        leaves=("logits for the queries",),
        deviations=(
            "the paper itself lets each device answer alone (`anytime`)",
            "all devices hold one model, cut at their depth; no exit's temperature is fitted",
        ),
        tasks=("image-classification", "text-classification"),
        roles=("logits",),
        family="own",
        final="exits",
    )

    def __post_init__(self) -> None:
        if min(self.queries, self.batch) < 1:
            raise ValueError("queries and batch are at least 1")

    def variants(self) -> Sequence[Method]:
        return [replace(self, deepest=depth) for depth in (None, *reversed(self.exits))]

    def build(self, base: nn.Module) -> nn.Module:
        if isinstance(base, MultiExit):
            model = base
        else:
            config: Any = base.config
            model = MultiExit(base, self.exits, int(config.num_labels))
        return (model if self.deepest is None else model.cut(self.deepest)).requires_grad_(False)

    def init(self, srv: Server) -> State:
        if srv.public is None or not len(srv.public):
            raise MethodError("there are no queries", hint="fedge infer RUN --federated asks a run's test rows")
        return {"answers": {}}

    def asked(self, srv: Server) -> Tensor:
        """Indices of this round's queries; after the last row the first one follows."""
        assert srv.public is not None
        return torch.arange(srv.round * self.queries, (srv.round + 1) * self.queries) % len(srv.public)

    def down(self, srv: Server, state: State, device: str) -> Payload:
        assert srv.public is not None
        batch = next(srv.public.take(self.asked(srv)).chunks(self.queries))
        return Payload({"activations": srv.task.inputs(batch)})

    @torch.no_grad()
    def client(self, dev: Device, down: Payload) -> Payload:
        model, queries = dev.model.eval(), down["activations"]
        count = len(next(iter(queries.values())))
        found = []
        with dev.meter.span("forward"):
            for start in range(0, count, self.batch):
                inputs = {name: column[start : start + self.batch] for name, column in queries.items()}
                found.append(model(**inputs)[-1])
        return Payload({"logits": {"queries": torch.cat(found)}})

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        answers = {device: reply["logits"]["queries"].clone() for device, reply in replies.items()}
        return {"answers": {**state["answers"], f"{srv.round:06d}": answers}}

    def predict(self, model: nn.Module, inputs: Batch) -> Tensor:
        deepest: Tensor = model(**inputs)[-1]
        return deepest

    def final(self, srv: Server, state: State) -> nn.Module:
        return srv.model()


def together(answers: Mapping[str, Tensor], weigh: str) -> Tensor:
    """The probabilities ``[rows, classes]`` that several devices' logits come to."""
    total: Tensor | None = None
    weights: Tensor | None = None
    for device in sorted(answers):
        said = answers[device].double().softmax(-1)
        weight = said.amax(-1, keepdim=True) if weigh == "confidence" else torch.ones_like(said[:, :1])
        total = said * weight if total is None else total + said * weight
        weights = weight if weights is None else weights + weight
    if total is None or weights is None:
        raise MethodError("nobody answered")
    return total / weights
