"""FedPM: random weights stay as they are, what is learnt is which of them count (Isik et al. 2023, arXiv 2209.15328).

Weights are ``± e √(1/fan_in)`` for ever; a device trains scores s, draws a mask ``m ~ Bern(σ(s))`` and sends its bits.
The server's probability of a weight is the mean of its bits, each taken as 0.01 or 0.99, and is where all begin next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedge.core.fold import weighted_mean
from fedge.core.method import Card, Device, Method, Replies, Server, State
from fedge.core.payload import Payload
from fedge.methods.tuning import Tuning, doc
from fedge.models import mask as masks
from fedge.models.mask import LEAST, MOST


@dataclass(frozen=True, kw_only=True)
class FedPM(Tuning):
    """Scores for the weights and biases of every linear and convolutional layer, the classifier's too."""

    lr: float = field(default=0.1, metadata=doc("learning rate of the scores on the device"))
    weighting: Literal["uniform", "rows"] = field(
        default="uniform", metadata=doc("what a device counts by in the mean", "uniform", "rows")
    )

    card: ClassVar[Card] = Card(
        name="FedPM",
        summary="masks over frozen random weights; a device sends one bit for each",
        paper="Isik et al. 2023, arXiv 2209.15328",
        stages=("train",),
        path="train/partial/selective",
        leaves=("one mask of bits, drawn from the device's probabilities", "number of rows"),
        deviations=(
            "embeddings and normalisation layers keep the base's values: the paper's networks have none",
            "a fixed number of local steps rather than epochs; the optimizer starts anew each round",
            "the figure is that of the weights whose probability is above one half; the release also tests drawn masks",
            "bits are packed without a codec; 'codec: [mask]' codes them by their entropy, as the paper counts them",
        ),
        tasks=("image-classification", "text-classification"),
        alternatives=("fedavg", "deltamask"),
        roles=("mask",),
        waives=(("still", "the weights are random: the base's are not there before the first round either"),),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in ("uniform", "rows"):
            raise ValueError(f"weighting is uniform or rows, not {self.weighting!r}")
        if self.depth != 1:
            raise ValueError("random weights are masked everywhere: depth is 1")
        if self.prox:
            raise ValueError("prox pulls trained weights, and masks train none")

    def variants(self) -> Sequence[Method]:
        lean = replace(self, micro_batch=max(1, self.batch // 4))
        return [self, lean, replace(lean, micro_batch=1)]

    def build(self, base: nn.Module) -> nn.Module:
        base.requires_grad_(False)
        names = []
        for name, layer in masks.layers(base).items():
            fan_in = layer.weight[0].numel() if type(layer).__name__ != "Conv1D" else len(layer.weight)
            size = math.e * math.sqrt(1 / fan_in)
            for kind in ("weight", "bias"):
                if layer._parameters.get(kind) is not None:
                    signs = torch.randn(layer._parameters[kind].shape).sign()
                    layer._parameters[kind] = nn.Parameter(signs * size, False)
                    names.append(f"{name}.{kind}")
        masks.score(base, names, torch.randn_like)
        return base

    def init(self, srv: Server) -> State:
        return {"theta": {}}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        return Payload({"weights": state["theta"]})

    def client(self, dev: Device, down: Payload) -> Payload:
        with dev.meter.span("load"):
            masks.load(dev.model, down["weights"])
        self.train(dev, masks.through_masks(dev.task.loss), {})
        drawn = dev.generator("mask")
        bits = {
            name: masks.pack(torch.rand(theta.shape, generator=drawn) < theta)
            for name, theta in masks.probabilities(dev.model).items()
        }
        return Payload({"mask": bits}, weight=len(dev.data) if self.weighting == "rows" else 1.0)

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        shapes = {name: tensor.shape for name, tensor in masks.scores(srv.model()).items()}
        bits = (
            (reply.weight, {name: masks.unpack(reply["mask"][name], shape).float() for name, shape in shapes.items()})
            for reply in replies.values()
        )
        return {"theta": {name: LEAST + (MOST - LEAST) * mean for name, mean in weighted_mean(bits).items()}}

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.model()
        theta: dict[str, Tensor] = state["theta"] or masks.probabilities(model)
        return masks.settle(model, {name: chance > 0.5 for name, chance in theta.items()}).requires_grad_(False)
