"""FlexLoRA: whole updates are averaged, and each device gets the best part of its rank (Bai et al., 2402.11505).

``T = Σ p_k s B_k A_k = U S Vᵀ``; a device of rank q starts from ``B = U_q S_q / s`` and ``A = V_qᵀ``, the nearest to T
that it can hold. The error is the spectrum beyond q, and nothing when q reaches the sum of the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import zeros_like

from fedge.core.fold import Pair, refactored, stacked
from fedge.core.method import Card, Replies, Server, State
from fedge.methods.lowrank import LowRank, shares, trained
from fedge.methods.tuning import average
from fedge.models.lora import named, paired


@dataclass(frozen=True, kw_only=True)
class FlexLoRA(LowRank):
    """The server keeps T in factors, slots in the order of their singular values; a device's are the first ones."""

    card: ClassVar[Card] = Card(
        name="FlexLoRA",
        summary="the mean of whole updates, cut by SVD to each device's rank",
        paper="Bai et al. 2024, arXiv 2402.11505",
        stages=("customize",),
        path="customize/fine-tune/additive/lora-heterogeneous",
        leaves=("the adapters' factors", "the change of the classifier", "number of rows"),
        deviations=(
            "the stage leaves T at its full rank, merged; devices start from their part of it",
            "devices may train upper blocks only; T of a module is over those who trained it",
            "the server optimizer moves the classifier alone",
            "a fixed number of local steps rather than an epoch",
        ),
        roles=("weights", "delta"),
    )

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        pairs = paired(state["factors"])
        for module, terms in trained(replies.values()).items():
            pairs[module] = self.spread(stacked(shares(terms)), pairs[module])
        return {**average(srv, state, replies), "factors": named(pairs)}

    def spread(self, mean: Pair, old: Pair) -> Pair:
        """The mean's slots by singular value, at least as many as the richest device holds.

        Where the devices' ranks add up to less, slots of the old A with a zero B fill up, so that they can learn.
        """
        if len(mean[0]) < self.rank:
            mean = stacked([(1.0, mean), (1.0, (old[0], zeros_like(old[1])))])
        return refactored(mean)
