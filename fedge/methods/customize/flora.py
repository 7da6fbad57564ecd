"""FLoRA: devices' adapters are stacked, not averaged, and merged into everyone's base (Wang et al. 2024, 2409.05976).

``W ← W + s Σ p_k B_k A_k`` without any error, whatever the devices' ranks: the factors side by side,
``B = [B_1 … B_K]`` and ``A = [p_1 A_1; …; p_K A_K]``, are that sum. Every device downloads the stack, adds it to its
base and starts the next round from a new adapter (A drawn, B zero).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import nn

from fedge.core.fields import doc
from fedge.core.fold import stacked
from fedge.core.method import Card, Device, Replies, Server, State
from fedge.core.payload import Payload, Tree
from fedge.methods.drift import catch_up, drifted, lacking, none_yet
from fedge.methods.lowrank import LowRank, shares, trained
from fedge.methods.tuning import average, enter
from fedge.models.names import trainable


@dataclass(frozen=True, kw_only=True)
class FLoRA(LowRank):
    """Stacking: what comes down grows with the ranks of all who answered, ``Σ r_k (in + out)`` numbers a module."""

    redraw: bool = field(default=True, metadata=doc("each device draws A anew each round; else all keep the first"))

    card: ClassVar[Card] = Card(
        name="FLoRA (stacking)",
        summary="adapters of any rank are stacked and merged into everyone's base, exactly; then begun anew",
        paper="Wang et al. 2024, arXiv 2409.05976",
        stages=("customize",),
        path="customize/fine-tune/additive/lora-heterogeneous",
        leaves=(
            "the adapters' factors, which every other device is sent as they are",
            "the change of the classifier",
            "number of rows",
        ),
        deviations=(
            "a device that missed rounds is sent the stacks that it lacks, or the merged weights where these are fewer",
            "devices may train upper blocks only; a module's stack is weighted among those who trained it",
            "the classifier is averaged; the server optimizer moves it alone",
            "no dropout in the adapters; a fixed number of local steps rather than an epoch",
        ),
        roles=("weights", "delta"),
    )
    gathers: ClassVar[bool] = True

    def init(self, srv: Server) -> State:
        return {**super().init(srv), "factors": {}, **none_yet()}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        payload = lacking(state, device)
        payload.parts["weights"] = {**payload["weights"], **super().down(srv, state, device)["weights"]}
        return payload

    def enter(self, dev: Device, down: Payload) -> Tree:
        with dev.meter.span("load"):
            # in a mixed cohort the base comes as it stands, without a history
            start = enter(dev, catch_up(dev, down) if "version" in down.meta else down["weights"])
        if self.redraw:
            for name, parameter in trainable(dev.model).items():
                if ".lora_A." in name:
                    nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
        return start

    def answer(self, dev: Device, start: Tree) -> Payload:
        reply = super().answer(dev, start)
        return replace(reply, meta={"version": dev.state["version"]}) if "version" in dev.state else reply

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        added = {name: stacked(shares(terms, self.scale)) for name, terms in trained(replies.values()).items()}
        return drifted(srv, average(srv, state, replies), added, replies)
