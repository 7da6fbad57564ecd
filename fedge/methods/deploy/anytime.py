"""Inference at anytime and anywhere: exits that accumulate class tokens (Liu et al. 2022, arXiv 2212.04084).

The backbone is frozen. After each block an adapter, a narrow transformer layer over the class tokens of the blocks so
far, makes an early prediction and changes the class token that goes on (``models.accumulator`` has the formulas, after
the same group's ReeFL). A device of depth D holds the blocks up to D and trains adapter, head, token and positions with
``Σ_{exits l ≤ D} CE(logits_l, y)``; each is the mean over those who trained it.

Survey and paper differ. In the paper a device answers alone, from the exit that it can afford (``ensemble: none``; its
successors average a device's exits, ``exits``). The survey (arXiv 2509.05142) reads it as the average of the clients'
predictions, each from its own depth: ``ensemble: clients`` judges the model so, with the depths of the last round's
devices, and ``fedge infer RUN --federated`` does it over the devices.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedge.core.fields import doc
from fedge.core.fit import Batch
from fedge.core.method import Card, Replies, Server, State
from fedge.methods.exits import Exits
from fedge.models.exits import Form


@dataclass(frozen=True, kw_only=True)
class Anytime(Exits):
    """Exits that read the class tokens of all blocks before them."""

    lr: float = field(default=1e-2, metadata=doc("learning rate on the device"))
    shared: bool = field(default=True, metadata=doc("one adapter for all blocks; false: one for each"))
    modulate: bool = field(default=True, metadata=doc("adapters change the class token that goes into the next block"))
    ensemble: Literal["none", "exits", "clients"] = field(
        default="none",
        metadata=doc(
            "what is judged: the last exit, the mean of the exits, or of the devices at theirs",
            *("none", "exits", "clients"),
        ),
    )

    card: ClassVar[Card] = Card(
        name="Inference at anytime and anywhere",
        summary="a frozen model whose exits accumulate class tokens, each device as deep as it reaches",
        paper="Liu et al. 2022, arXiv 2212.04084; Lee et al. 2024 (ReeFL, ICML) for the adapter's form",
        stages=("deploy",),
        path="deploy",
        leaves=("the change of adapters and head, up to the device's depth", "number of rows"),
        stars=(1, 1, 1),
        deviations=(
            "no code of the paper is public: the adapter is the one of its successor ReeFL, shared by all blocks "
            "(shared: false has one for each, as the abstract says)",
            "both branches of the adapter start at zero and the head at the model's own, so that the last exit begins "
            "near what the model says",
            "where a model has no class token, the mean of its tokens is changed instead; in a language model, each",
            "a fixed number of local AdamW steps; the release has SGD with gradients clipped by value",
        ),
        tasks=("image-classification", "text-classification", "causal-lm", "masked-lm"),
        family="own",
        final="exits",
    )
    linear: ClassVar[bool] = True

    @property
    def form(self) -> Form:
        return Form("accumulator", self.shared, self.modulate)

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        depths = Counter(str(self.depth_of(srv, device)) for device in replies if device in srv.variants)
        return {**super().update(srv, state, replies), "depths": dict(sorted(depths.items()))}

    def final(self, srv: Server, state: State) -> nn.Module:
        model = super().final(srv, state)
        # None, a device of full depth, is the last exit
        asked = {str(point): state.get("depths", {}).get(str(point), 0) for point in model.points}
        asked[str(model.points[-1])] += state.get("depths", {}).get("None", 0)
        model.devices = [asked[str(point)] for point in model.points]
        return model

    def predict(self, model: nn.Module, inputs: Batch) -> Tensor:
        logits = torch.stack(model(**inputs))
        if self.ensemble == "none":
            return logits[-1]
        votes = torch.ones(len(logits))
        if self.ensemble == "clients" and sum(getattr(model, "devices", ())):
            votes = torch.tensor(model.devices, dtype=logits.dtype)
        return torch.einsum("e,e...->...", votes / votes.sum(), logits)
