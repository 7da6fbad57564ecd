"""FedEx-LoRA: factors are averaged, and what that misses goes into the frozen weights (Singhal et al., 2410.09432).

The mean of factors is not the mean of products. The difference ``R = Σ p_k B_k A_k − B̄ Ā`` is the covariance of the
factors over the devices, of rank ``(K−1) r`` at most; ``W ← W + s R`` makes every round exact. ``residual_rank`` sends
the best approximation of that rank instead, whose error is the part of R's spectrum that it leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from fedge.core.fields import doc
from fedge.core.fold import covariance, refactored
from fedge.core.method import Card, Device, Method, Replies, Server, State
from fedge.core.payload import Payload, Tree
from fedge.methods.drift import catch_up, drifted, lacking, none_yet
from fedge.methods.lowrank import LowRank, covered_mean, trained
from fedge.methods.tuning import average, enter


@dataclass(frozen=True, kw_only=True)
class FedExLoRA(LowRank):
    """One rank for all; the variants train the adapters of the upper blocks and fewer rows at once."""

    weighting: Literal["rows", "uniform"] = field(
        default="uniform", metadata=doc("what a device counts by in the mean", "rows", "uniform")
    )
    residual_rank: int | None = field(default=None, metadata=doc("rank of the residual that is sent; None: exact"))

    card: ClassVar[Card] = Card(
        name="FedEx-LoRA",
        summary="averaged adapters, and their exact residual in everyone's frozen weights",
        paper="Singhal et al. 2024, arXiv 2410.09432",
        stages=("customize",),
        path="customize/fine-tune/additive/lora-homogeneous",
        leaves=("the adapters' factors", "the change of the classifier", "number of rows"),
        deviations=(
            "devices may train upper blocks only; means and residual of a module are over those who trained it",
            "a device that missed rounds is sent the residuals that it lacks, or the weights where these are fewer",
            "the server optimizer moves the classifier alone",
            "no dropout, no learning-rate schedule; a fixed number of local steps rather than epochs",
        ),
        roles=("weights", "delta"),
    )
    gathers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.residual_rank is not None and self.residual_rank <= 0:
            raise ValueError(f"residual_rank must be above 0, not {self.residual_rank}")

    def variants(self) -> Sequence[Method]:
        return [replace(variant, rank=self.rank) for variant in super().variants() if isinstance(variant, LowRank)]

    def init(self, srv: Server) -> State:
        return {**super().init(srv), **none_yet()}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        payload = lacking(state, device)
        payload.parts["weights"] = {**payload["weights"], **super().down(srv, state, device)["weights"]}
        return payload

    def enter(self, dev: Device, down: Payload) -> Tree:
        with dev.meter.span("load"):
            return enter(dev, catch_up(dev, down))

    def answer(self, dev: Device, start: Tree) -> Payload:
        return replace(super().answer(dev, start), meta={"version": dev.state["version"]})

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        added = {}
        for module, terms in trained(replies.values()).items():
            residual = covariance(terms)
            if residual is not None:
                a, b = refactored(residual, self.residual_rank) if self.residual_rank else residual
                added[module] = (a * self.scale, b)
        sent = ((reply.weight, reply["weights"]) for reply in replies.values())
        state = {**average(srv, state, replies), "factors": covered_mean(state["factors"], sent)}
        return drifted(srv, state, added, replies)
