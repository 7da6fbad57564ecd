"""InclusiveFL: models of several depths, each with its last block to itself (Liu et al., KDD 2022).

A device of tier D holds D blocks and one exit after them, and trains ``CE_D`` alone. Its last block and its head belong
to its tier; the blocks below are shared by all tiers and averaged over them. So that the shallow tiers learn what deep
ones know, the change of a tier's last block takes up the mean change of the blocks that the next tier has beyond it,
as that was in the round before (momentum distillation)::

    Δ ← (1 − β) Δ_i + β m_{i+1}        m_i = mean of tier i's changes of its blocks beyond tier i−1's depth

A tier that nobody of a round belongs to leaves ``m = 0``. In the whole model an exit is its tier's last block with its
head, on what the shared blocks below give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedge.core.fields import doc
from fedge.core.fit import Batch
from fedge.core.fold import Coverage
from fedge.core.method import Card, Device, Method, Replies, Server, State
from fedge.core.payload import Payload, Tree
from fedge.methods.exits import Exits
from fedge.methods.tuning import start_of
from fedge.models.anatomy import Anatomy, anatomy
from fedge.models.exits import Form, MultiExit
from fedge.models.names import load

#: ``deepest`` of the model that the server holds: every tier's.
ALL = 0


@dataclass(frozen=True, kw_only=True)
class InclusiveFL(Exits):
    """One exit a device; ``beta`` is what a tier's last block takes from the next tier."""

    backbone: bool = field(default=True, metadata=doc("train the blocks up to the device's last exit too"))
    lr: float = field(default=1e-3, metadata=doc("learning rate on the device"))
    beta: float = field(default=0.2, metadata=doc("weight of the next tier's change in a tier's last block"))

    card: ClassVar[Card] = Card(
        name="InclusiveFL",
        summary="a depth for each tier of devices, last block and head its own, the blocks below shared",
        paper="Liu R. et al. 2022, KDD, doi 10.1145/3534678.3539086",
        stages=("deploy",),
        path="deploy",
        leaves=("the change of the tier's blocks and exit", "number of rows"),
        deviations=(
            "means are weighted by rows; the paper counts devices",
            "tiers are the depths that devices can afford, not assigned",
            "embeddings are not trained",
        ),
        tasks=("image-classification", "text-classification", "causal-lm", "masked-lm"),
        family="own",
        final="exits",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta is a share in [0, 1), not {self.beta}")

    @property
    def form(self) -> Form:
        return Form("blocks")

    def everyone(self) -> Sequence[Method]:
        return [replace(self, deepest=depth) for depth in (None, *self.exits)]

    def shortened(self, model: MultiExit) -> MultiExit:
        if self.deepest == ALL:
            return model
        depth = model.points[-1] if self.deepest is None else self.deepest
        short = model.cut(depth)
        short.points, short.own_blocks = (depth,), ()
        for name in [name for name in short.exits if name != str(depth)]:
            del short.exits[name]
        return short

    def exits_loss(self, dev: Device, logits: Sequence[Tensor], batch: Batch) -> Tensor:
        return dev.task.loss_of(logits[-1], batch["labels"])

    def init(self, srv: Server) -> State:
        weights = start_of(srv.model(self.leaving_at(ALL)))
        return {"weights": weights, "changed": [], "moments": {}, "momentum": {}}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        parts = anatomy(srv.base())
        depth = self.depth_of(srv, device) or parts.depth
        weights: Tree = {}
        for name in state["changed"]:
            there = _on_device(name, depth, parts)
            if there is not None:
                weights[there] = state["weights"][name]
        return Payload({"weights": weights})

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        parts = anatomy(srv.base())
        weights: Tree = state["weights"]
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        everyone = Coverage(shapes)
        tiers: dict[int, Coverage] = {}
        for device, reply in replies.items():
            depth = self.depth_of(srv, device) or parts.depth
            delta = {_on_server(name, depth, parts): tensor for name, tensor in reply["delta"].items()}
            everyone.add(reply.weight, delta)
            tiers.setdefault(depth, Coverage(shapes)).add(reply.weight, delta)
        change, covered = everyone.mean()
        depths = sorted({*self.exits, parts.depth})
        for depth, following in pairwise(depths):
            own = f"exits.{depth}.block."
            momentum = state["momentum"].get(str(following), {})
            for name in [name for name in change if name.startswith(own)]:
                taken = momentum.get(name.removeprefix(own), torch.zeros_like(change[name]))
                change[name] = (1 - self.beta) * change[name] + self.beta * taken
        weights, moments = srv.optimizer.step(weights, change, state["moments"], covered)
        return {
            "weights": weights,
            "moments": moments,
            "changed": sorted({*state["changed"], *change}),
            "momentum": {str(depth): _beyond(tier.mean()[0], depth, depths, parts) for depth, tier in tiers.items()},
        }

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.model(self.leaving_at(ALL))
        load(model, state["weights"])
        return model


def _beyond(change: Tree, depth: int, depths: Sequence[int], parts: Anatomy) -> Tree:
    """The mean change over the blocks that a tier has beyond the one before it, by name within a block."""
    before = max((other for other in depths if other < depth), default=0)
    last = parts.layer_prefixes[depth - 1] if depth == parts.depth else f"exits.{depth}.block."
    prefixes = [*parts.layer_prefixes[before : depth - 1], last]
    found: dict[str, list[Tensor]] = {}
    for prefix in prefixes:
        for name, tensor in change.items():
            if name.startswith(prefix):
                found.setdefault(name.removeprefix(prefix), []).append(tensor)
    return {name: torch.stack(tensors).mean(0) for name, tensors in found.items()}


def _on_server(name: str, depth: int, parts: Anatomy) -> str:
    """The global name of a tensor that a device of a tier calls ``name``: its last block is its tier's."""
    last = parts.layer_prefixes[depth - 1]
    if depth < parts.depth and name.startswith(last):
        return f"exits.{depth}.block.{name.removeprefix(last)}"
    return name


def _on_device(name: str, depth: int, parts: Anatomy) -> str | None:
    """What a device of a tier calls a global tensor; None for one that it does not hold."""
    whole = depth == parts.depth
    if name.startswith("exits."):
        mine = name.startswith(f"exits.{depth}.")
        return name.replace(f"exits.{depth}.block.", parts.layer_prefixes[depth - 1]) if mine else None
    shared = tuple(parts.layer_prefixes[: depth if whole else depth - 1])
    return name if name.startswith(shared) or (whole and not name.startswith(tuple(parts.layer_prefixes))) else None
