"""Replication padding: what the few rich devices learnt fills the others' gap (Byun & Lee 2024, arXiv 2406.17477).

Everyone begins at rank ``low``. The devices whose model does best on rows that they held out, a share ``rich`` of those
who have been scored, go on at rank ``rank``. Averaging with zeros would dilute the slots that only they own, so a gap
is filled with the rich devices' mean before all are averaged: slot j becomes the mean over the owners of slot j.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedge.core.fields import doc
from fedge.core.fold import Pair
from fedge.core.method import Card, Device, Replies, Rows, Server, State
from fedge.core.payload import Payload
from fedge.core.value import value
from fedge.methods.lowrank import LowRank, covered_mean, cut, rank_of
from fedge.methods.tuning import average
from fedge.models.lora import named, paired


@dataclass(frozen=True, kw_only=True)
class ReplicationPadding(LowRank):
    """Two ranks; who gets the higher one is decided by score, or by what a device can afford."""

    rank: int = field(default=20, metadata=doc("rank of the rich devices, as far as they can afford it"))
    low: int = field(default=5, metadata=doc("rank of the others, and of everyone at first"))
    rich: float = field(default=0.1, metadata=doc("share of the scored devices that get the higher rank"))
    rank_source: Literal["validation", "capability"] = field(
        default="validation",
        metadata=doc("who is rich: the best score, or who can afford it", "validation", "capability"),
    )
    held_out: float = field(default=0.2, metadata=doc("share of its rows on which a device is scored, once"))

    card: ClassVar[Card] = Card(
        name="replication padding",
        summary="two ranks; the slots that only rich devices own are averaged among these",
        paper="Byun & Lee 2024, arXiv 2406.17477",
        stages=("customize",),
        path="customize/fine-tune/additive/lora-heterogeneous",
        leaves=("the adapters' factors", "the change of the classifier", "one validation loss", "number of rows"),
        stars=(3, 2, 2),
        deviations=(
            "a device is scored in its first round, and who is rich stays so; the paper scores all after round one",
            "the score is the validation loss",
            "slots that nobody in a round owns keep their value",
            "devices may train upper blocks only; a module's mean is over those who trained it",
        ),
        roles=("weights", "delta", "scalars"),
        waives=(("bytes", "a device's rank depends on its score; the plan is for the higher one"),),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0 or not 0 < self.rich <= 1 or not 0 < self.held_out < 1:
            raise ValueError(
                f"low above 0, rich in (0, 1], held_out in (0, 1), not {self.low}, {self.rich}, {self.held_out}"
            )

    def init(self, srv: Server) -> State:
        return {**super().init(srv), "losses": {}, "rich": []}

    def share(self, srv: Server, state: State, device: str) -> dict[str, Pair]:
        rank = rank_of(srv, device)
        if self.rank_source == "validation" and device not in state["rich"]:
            rank = min(rank, self.low)
        return {name: cut(pair, rank) for name, pair in paired(state["factors"]).items()}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        asked = self.rank_source == "validation" and device not in state["losses"]
        payload = super().down(srv, state, device)
        return Payload(payload.parts, meta={"score": asked})

    def client(self, dev: Device, down: Payload) -> Payload:
        start = self.enter(dev, down)
        rank = min(len(a) for a, _ in paired(down["weights"]).values())
        rows, held = self.divided(dev) if down.meta["score"] else (dev.data, None)
        self.train(dev, dev.task.loss, start, rows)
        scalars = {} if held is None else {"loss": self.score(dev, held)}
        reply = self.answer(dev, start)
        factors = {name: cut(pair, rank) for name, pair in paired(reply["weights"]).items()}
        return Payload({**reply.parts, "weights": named(factors), "scalars": scalars}, weight=reply.weight)

    def divided(self, dev: Device) -> tuple[Rows, Rows]:
        """The rows to train on and those held out; a device with a single row has it in both."""
        order = torch.randperm(len(dev.data), generator=dev.generator("held out"))
        count = max(1, int(self.held_out * len(order)))
        return dev.data.take(order[count:] if len(order) > 1 else order), dev.data.take(order[:count])

    @torch.no_grad()
    def score(self, dev: Device, rows: Rows) -> Tensor:
        """The mean loss on rows, 0-d."""
        dev.model.eval()
        size = self.micro_batch or self.batch
        losses = [dev.task.loss(dev.model, chunk) * len(chunk["labels"]) for chunk in rows.chunks(size)]
        return torch.stack(losses).sum() / len(rows)

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        sent = ((reply.weight, reply["weights"]) for reply in replies.values())
        found = {d: value(r["scalars"]["loss"], traced=0.0) for d, r in replies.items() if "loss" in r["scalars"]}
        losses = {**state["losses"], **found}
        best = sorted(losses, key=lambda device: (losses[device], device))
        places = ceil(self.rich * len(losses)) - len(state["rich"])
        rich = state["rich"] + [device for device in best if device not in state["rich"]][: max(0, places)]
        factors = covered_mean(state["factors"], sent)
        return {**average(srv, state, replies), "factors": factors, "losses": losses, "rich": rich}
