"""Exits at several depths, trained by devices of several depths (after Liu et al. 2022, arXiv 2212.04084; first form).

The backbone is frozen; after block l of each exit a head ``linear(norm(pool(h_l)))`` predicts, and after the last block
the model's own head, which is trained as the last exit. A device of depth D holds only the blocks up to D and trains
the exits l ≤ D with ``Σ_{l ≤ D} CE(logits_l, y)``; a head is the mean over those who trained it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedge.core.fields import doc
from fedge.core.fit import Batch
from fedge.core.method import Card, Device, Method, Server, State
from fedge.core.payload import Payload
from fedge.methods.tuning import Tuning, enter, leave
from fedge.models.anatomy import anatomy
from fedge.models.exits import MultiExit


@dataclass(frozen=True, kw_only=True)
class Anytime(Tuning):
    """Exit heads after the blocks ``exits`` (counted from 1); the variants stop at a shallower exit."""

    exits: tuple[int, ...] = field(default=(2, 4, 6), metadata=doc("blocks after which there is an exit"))
    deepest: int | None = field(default=None, metadata=doc("the last exit that this device holds"))
    lr: float = field(default=1e-2, metadata=doc("learning rate on the device"))
    backbone: bool = field(default=False, metadata=doc("train the blocks up to the device's last exit too"))

    card: ClassVar[Card] = Card(
        name="Inference at anytime and anywhere (exit heads)",
        summary="exit heads after several blocks, each trained by the devices that reach so deep",
        paper="Liu et al. 2022, arXiv 2212.04084",
        stages=("deploy",),
        path="deploy",
        leaves=("the change of the exits' heads", "number of rows"),
        stars=(1, 1, 1),
        deviations=(
            "one head an exit instead of the paper's accumulator of class tokens",
            "no modulation of the forward pass",
        ),
        tasks=("image-classification", "text-classification"),
        family="own",
        final="exits",
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.exits or list(self.exits) != sorted(set(self.exits)) or self.exits[0] < 1:
            raise ValueError(f"exits are rising block numbers from 1, not {list(self.exits)}")

    def variants(self) -> Sequence[Method]:
        small = max(1, self.batch // 4)
        rungs = [replace(self, deepest=depth) for depth in (None, *reversed(self.exits))]
        return [rungs[0], *(replace(rung, micro_batch=small) for rung in rungs)]

    def build(self, base: nn.Module) -> nn.Module:
        model = base if isinstance(base, MultiExit) else MultiExit(base, self.exits, _classes(base))
        if self.deepest is not None:
            model = model.cut(self.deepest)
        parts = anatomy(model)
        heads = ("exits.", *parts.head_prefixes)
        trained = (*heads, *parts.layer_prefixes) if self.backbone else heads
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(trained))
        return model

    def down(self, srv: Server, state: State, device: str) -> Payload:
        variant = srv.variants[device]
        last = variant.deepest if isinstance(variant, Anytime) else None
        if last is None:
            return super().down(srv, state, device)
        parts = anatomy(srv.base())
        if last == parts.depth:
            return super().down(srv, state, device)
        held = (*(f"exits.{block}." for block in self.exits if block <= last), *parts.layer_prefixes[:last])
        return Payload({"weights": {n: state["weights"][n] for n in state["changed"] if n.startswith(held)}})

    def client(self, dev: Device, down: Payload) -> Payload:
        start = enter(dev, down["weights"])

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            logits = model(**dev.task.inputs(batch))
            return self.exits_loss(dev, logits, batch)

        self.train(dev, loss, start)
        return leave(dev, start)

    def exits_loss(self, dev: Device, logits: Sequence[Tensor], batch: Batch) -> Tensor:
        """What the device's exits, shallowest first, are trained with."""
        return torch.stack([dev.task.loss_of(each, batch["labels"]) for each in logits]).sum()

    def predict(self, model: nn.Module, inputs: Batch) -> Tensor:
        deepest: Tensor = model(**inputs)[-1]
        return deepest


def _classes(base: nn.Module) -> int:
    config: Any = base.config
    return int(config.num_labels)
