"""FedKSeed: every weight tuned without gradients, in a few kilobytes (Qin et al. 2023, arXiv 2312.06353).

A model is ``w = w₀ + Σ_j a_j z(s_j)`` over K fixed seeds whose directions ``z ~ N(0, I)`` are drawn again wherever they
are needed. The server sends the coordinates ``a [K]``; a device rebuilds ``w``, and at each step takes a seed j and
moves by ``−η ρ z(s_j)`` with ``ρ = (L(w + ε z) − L(w − ε z)) / 2ε``; it sends what it added to each coordinate. Summed
coordinates are the average of models exactly, because a move never depends on w (no weight decay, a constant rate).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedge.core.fold import weighted_mean
from fedge.core.method import Card, Device, Method, Replies, Server, State
from fedge.core.payload import Payload
from fedge.core.rng import generator
from fedge.methods.tuning import doc


@dataclass(frozen=True, kw_only=True)
class FedKSeed(Method):
    """Two forward passes a step, no activations kept, 4 K bytes each way whatever the model's size."""

    seeds: int = field(default=4096, metadata=doc("K: directions in which the model can move"))
    lr: float = field(default=1e-4, metadata=doc("η, constant: coordinates of all rounds are added up"))
    eps: float = field(default=5e-4, metadata=doc("ε: half the distance over which the slope is taken"))
    steps: int = field(default=16, metadata=doc("steps a round on the device"))
    batch: int = field(default=16, metadata=doc("rows in a step"))

    card: ClassVar[Card] = Card(
        name="FedKSeed",
        summary="zeroth-order tuning of every weight; only scalars over fixed seeds travel",
        paper="Qin et al. 2023, arXiv 2312.06353",
        stages=("customize",),
        path="customize/fine-tune",
        leaves=("what was added to each of K coordinates", "number of rows"),
        deviations=(
            "seeds are drawn alike, without the probabilities of FedKSeed-Pro",
            "a larger rate and larger batches than the paper's, which is for models of a billion weights",
        ),
        roles=("scalars",),
        alternatives=("bitfit", "lora"),
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("seeds", "lr", "eps", "steps", "batch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")

    def variants(self) -> Sequence[Method]:
        return [self, replace(self, batch=max(1, self.batch // 4))]

    def build(self, base: nn.Module) -> nn.Module:
        return base.requires_grad_(True)  # every weight moves, and so needs memory of its own

    def init(self, srv: Server) -> State:
        return {"at": torch.zeros(self.seeds)}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        return Payload({"scalars": {"at": state["at"]}})

    @torch.no_grad()
    def client(self, dev: Device, down: Payload) -> Payload:
        with dev.meter.span("load"):
            rebuild(dev.model.eval(), down["scalars"]["at"])
        picked = torch.randint(self.seeds, (self.steps,), generator=dev.generator("seeds"))
        moved = torch.zeros(self.seeds)
        batches = dev.data.batches(self.batch, dev.generator("batches"))
        for seed, batch in zip(picked.tolist(), islice(batches, self.steps), strict=True):
            with dev.meter.span("forward"):
                walk(dev.model, seed, self.eps)
                high = dev.task.loss(dev.model, batch)
                walk(dev.model, seed, -2 * self.eps)
                low = dev.task.loss(dev.model, batch)
            move = -self.lr * (high - low) / (2 * self.eps)
            walk(dev.model, seed, self.eps + move)
            moved[seed] += move
            dev.meter.count("loss", (high + low) / 2)
        return Payload({"scalars": {"moved": moved}}, weight=len(dev.data))

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        mean = weighted_mean((reply.weight, reply["scalars"]) for reply in replies.values())
        return {"at": state["at"] + mean["moved"]}

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.copy()
        rebuild(model.requires_grad_(True), state["at"])
        return model.requires_grad_(False)


@torch.no_grad()
def walk(model: nn.Module, seed: int, scale: float | Tensor) -> None:
    """Add ``scale · z(seed)`` to every trainable weight; z lives one tensor at a time."""
    drawn = generator("direction", seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            direction = torch.randn(parameter.shape, generator=drawn, dtype=parameter.dtype)
            parameter.add_(direction * scale)


def rebuild(model: nn.Module, at: Tensor) -> None:
    """Move a model that stands at ``w₀`` to the coordinates ``at [K]``."""
    for seed, length in enumerate(at.tolist()):
        if length != 0.0:
            walk(model, seed, length)
