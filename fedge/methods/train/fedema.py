"""FedEMA: what is received is merged into the device's own encoder, by how far that has moved (Zhuang et al. 2022).

arXiv 2204.04385. With D_k how far the encoder moved in the device's last training, at its next participation::

    λ_k = τ / D_k at the first measurement, or a constant;  μ_k = min(1, λ_k D_k)
    f ← μ_k f_k + (1 − μ_k) f_g;  q ← μ_k q_k + (1 − μ_k) q_g;  the target stays the device's

A device that missed the round before takes the global model, as its target too. ``objective`` and ``merge: global``
give the paper's baselines: FedBYOL, FedSimSiam, FedSimCLR, FedMoCo.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedge.core.method import Card, Device
from fedge.core.payload import Tree
from fedge.methods.selfsup import SelfSupervised, moved, split
from fedge.methods.tuning import doc, start_of
from fedge.models.names import load


@dataclass(frozen=True, kw_only=True)
class FedEMA(SelfSupervised):
    """``lam`` is λ for every device; without it each finds its own by ``tau``."""

    objective: Literal["byol", "simsiam", "simclr", "moco"] = field(
        default="byol", metadata=doc("what a device learns by", "byol", "simsiam", "simclr", "moco")
    )
    merge: Literal["ema", "global"] = field(
        default="ema",
        metadata=doc("how a device meets what it receives: merged into its own, or taken", "ema", "global"),
    )
    tau: float = field(default=0.7, metadata=doc("τ: μ at a device's second participation"))
    lam: float | None = field(default=None, metadata=doc("λ, constant; none: found by each device from τ"))
    temperature: float = field(default=0.5, metadata=doc("T of simclr and moco (moco's papers: 0.07 to 0.2)"))
    queue: int = field(default=256, metadata=doc("earlier keys that moco keeps as negatives"))

    card: ClassVar[Card] = Card(
        name="FedEMA",
        summary="self-supervision by a target that stays on the device; the global encoder is merged into its own",
        paper="Zhuang et al. 2022, arXiv 2204.04385",
        stages=("train",),
        path="train/entire",
        leaves=("the change of the encoder, the projection and the predictor", "number of rows"),
        deviations=(
            "D is measured over the device's own training, as in the release; the paper writes the distance between "
            "global and local encoder",
            "D is the mean over weight matrices of a transformer; the paper's is over convolutions",
            "projection and predictor have a normalisation of each row where the paper's have one of the batch",
            "a fixed number of local steps at a constant rate; the paper's follows a cosine over rounds",
            "the figure is that of nearest neighbours among the training rows",
        ),
        tasks=("image-classification",),
        alternatives=("moon", "fedavg"),
        judged="neighbours",
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau < 0 or (self.lam is not None and self.lam < 0):
            raise ValueError(f"tau and lam are at least 0, not {self.tau} and {self.lam}")

    def meet(self, dev: Device, received: Tree) -> Tree:
        state, encoder = dev.state, split(received)[0]
        if self.merge == "global" or state.get("round") != dev.round - 1:
            return state.get("target", encoder) if self.merge == "global" else encoder
        mu = self.share(state)
        load(dev.model, {name: mu * state["own"][name] + (1 - mu) * tensor for name, tensor in received.items()})
        target: Tree = state.get("target", {})
        return target

    def share(self, state: dict[str, Tensor]) -> Tensor:
        """``μ_k = min(1, λ_k D_k)``, 0-d."""
        lam = state["lam"] if self.lam is None else torch.tensor(self.lam)
        return (lam * state["moved"]).clamp(max=1.0)

    def part(self, dev: Device, before: Tree, target: Tree) -> None:
        if self.objective == "byol":
            dev.state["target"] = target
        if self.merge == "ema":
            own = start_of(dev.model)
            far = moved(before, own)
            dev.state.setdefault("lam", self.tau / far.clamp_min(1e-12))
            dev.state.update(own=own, moved=far, round=dev.round)
