"""FLASC: LoRA whose download and upload are sparse while training is dense (Kuo et al. 2024, arXiv 2406.05233).

Adapters and classifier are one vector P. The server sends ``P ⊙ M`` with M the largest share ``d_down`` of ``|P|``; a
device trains all of it densely and sends the largest share ``d_up`` of its change; the server's optimizer takes the
mean, where what was left out counts as no change. With both shares 1 this is LoRA.

P is counted from where it began, which every device knows: A's random start then needs no place among the largest, and
a classifier that nobody trained is whole. ``masked: weights`` masks the factors themselves, as the paper does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedge.core.fit import fit
from fedge.core.method import Card, Device, Replies, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.methods.customize.lora import LoRA
from fedge.methods.flat import adapters_and_heads, dense, flat, kept, mean, shapes, sparse, unflat
from fedge.methods.lowrank import is_factor
from fedge.methods.tuning import doc, leave
from fedge.models.lora import merge
from fedge.models.names import attach, load, trainable


@dataclass(frozen=True, kw_only=True)
class FLASC(LoRA):
    """Two densities, which no variant changes: every device can afford the bytes."""

    down_density: float = field(default=0.25, metadata=doc("share of adapters and classifier that is sent down"))
    up_density: float = field(default=0.25, metadata=doc("share of the trained numbers whose change is sent up"))
    masked: Literal["change", "weights"] = field(
        default="change", metadata=doc("what of the factors is largest: their change, or they themselves")
    )
    reading: Literal["paper", "survey"] = field(
        default="paper",
        metadata=doc("devices train all, or as the survey has it what they were sent", "paper", "survey"),
    )

    card: ClassVar[Card] = replace(
        LoRA.card,
        name="FLASC",
        summary="LoRA with sparse messages both ways and dense training between",
        paper="Kuo et al. 2024, arXiv 2406.05233",
        path="customize/hybrid",
        leaves=("the largest changes of the adapters' factors and of the classifier, and where", "number of rows"),
        stars=(2, 3, 3),
        deviations=(
            "masked is the change since the stage began; the paper masks the factors themselves, A's random start too, "
            "which leaves B no place in few rounds (masked: weights; the classifier is masked by its change there too)",
            "the server optimizer is the stage's; the paper's is Adam: server: {optimizer: fedadam}",
            "the survey has devices train only what they were sent: reading: survey",
            "devices may train fewer rank slots or only upper blocks; what they leave counts as unchanged",
            "a fixed number of local steps rather than an epoch; rows weigh",
        ),
        alternatives=("lora", "compeft"),
        family="own",
        claims=(),
    )
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.down_density <= 1 and 0 < self.up_density <= 1):
            raise ValueError(f"densities are shares in (0, 1], not {self.down_density:g} and {self.up_density:g}")
        if self.masked not in ("change", "weights"):
            raise ValueError(f"masked is change or weights, not {self.masked!r}")
        if self.reading not in ("paper", "survey"):
            raise ValueError(f"reading is paper or survey, not {self.reading!r}")

    def init(self, srv: Server) -> State:
        weights = {name: tensor.detach().clone() for name, tensor in adapters_and_heads(srv.model()).items()}
        return {"weights": weights, "from": self.start(weights), "moments": {}}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        vector = self.vector(state)
        return Payload({"weights": sparse(vector, kept(vector, self.down_density))})

    def vector(self, state: State) -> Tensor:
        """P, of which the largest numbers are sent."""
        weights: Tree = state["weights"]
        moved = {name: weights[name] - tensor for name, tensor in state["from"].items()}
        return flat({**weights, **moved}, shapes(weights))

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        held = adapters_and_heads(dev.model)
        of = shapes(held)
        vector, places = dense(down["weights"], sum(shape.numel() for shape in of.values()))
        start = unflat(vector, of)
        start |= {name: start[name] + tensor for name, tensor in self.start(held).items()}
        with dev.meter.span("load"):
            attach(dev.model, start)
        parameters = trainable(dev.model)
        begun = {name: start[name][tuple(slice(0, n) for n in p.shape)] for name, p in parameters.items()}
        self.learn(dev, unflat(torch.zeros_like(vector).index_fill(0, places, 1.0), of))
        change = leave(dev, begun)
        trained = sum(parameter.numel() for parameter in parameters.values())
        vector = flat(change["delta"], of)
        return Payload({"delta": sparse(vector, kept(vector, self.up_density, trained))}, weight=change.weight)

    def start(self, begun: Tree) -> Tree:
        """What P is counted from, of tensors as the stage began; the rest is counted from zero."""
        counted = {n: t for n, t in begun.items() if self.masked == "change" or not is_factor(n)}
        return {name: tensor.detach().clone() for name, tensor in counted.items()}

    def learn(self, dev: Device, sent: Tree) -> None:
        """Local training; ``sent`` is 1 where a number was sent down, by name."""
        fitted = fit(
            dev.model,
            dev.data.batches(self.batch, dev.generator("batches")),
            loss=dev.task.loss,
            optimizer=self.local_optimizer(trainable(dev.model).values()),
            steps=self.steps,
            micro_batch=self.micro_batch,
            # nothing has moved before the first round, so that nothing is largest yet
            after_backward=_only(sent) if self.reading == "survey" and dev.round else None,
            spans=dev.meter,
        )
        dev.meter.count("loss", fitted.loss)

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        weights: Tree = state["weights"]
        of = shapes(weights)
        size = sum(shape.numel() for shape in of.values())
        change = mean(((reply.weight, dense(reply["delta"], size)[0]) for reply in replies.values()), size)
        weights, moments = srv.optimizer.step(weights, unflat(change, of), state["moments"])
        return {**state, "weights": weights, "moments": moments}

    def adapter(self, srv: Server, state: State) -> nn.Module:
        """The model as devices get it: of P what is sent down."""
        vector = self.vector(state)
        places = kept(vector, self.down_density)
        masked = unflat(torch.zeros_like(vector).index_copy(0, places, vector[places]), shapes(state["weights"]))
        model = srv.model()
        load(model, {**masked, **{name: masked[name] + tensor for name, tensor in state["from"].items()}})
        return model

    def final(self, srv: Server, state: State) -> nn.Module:
        return merge(self.adapter(srv, state))


def _only(sent: Tree) -> Callable[[nn.Module], None]:
    """Let only those numbers move that were sent."""

    def mask(model: nn.Module) -> None:
        for name, parameter in trainable(model).items():
            if parameter.grad is not None:
                parameter.grad.mul_(sent[name][tuple(slice(0, n) for n in parameter.shape)])

    return mask
