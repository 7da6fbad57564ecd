"""Photon: a language model pre-trained by many local steps a round and an outer optimizer (Sani et al. 2024).

With ``Δ = Σ p_k (w_k − w)`` after H local steps of AdamW on each device, the server takes Nesterov's step
``b ← m b + Δ``, ``w ← w + η (Δ + m b)``. The learning rate warms up and decays over the steps of all rounds, whatever
becomes of the inner optimizer's state: begun anew each round (Photon), or kept on the device (DiLoCo, 2311.08105).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import nn

from fedge.core.fit import fit
from fedge.core.method import Card, Device, Method, Replies, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.core.server import ServerOptimizer
from fedge.errors import MethodError
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.tuning import average, doc, leave
from fedge.models.names import trainable

#: What AdamW keeps of each parameter.
_KEPT = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Photon(FedAvg):
    """``steps`` is H, the number of local steps between two exchanges of the whole model."""

    lr: float = field(default=6e-4, metadata=doc("highest learning rate on the device"))
    steps: int = field(default=50, metadata=doc("H: optimizer steps a round on the device"))
    beta2: float = field(default=0.95, metadata=doc("decay of AdamW's second moment"))
    clip: float = field(default=1.0, metadata=doc("largest norm of a step's gradient; 0 clips nothing"))
    warmup: int = field(default=0, metadata=doc("steps, of all rounds, in which the rate rises to lr"))
    horizon: int = field(default=0, metadata=doc("steps, of all rounds, over which it falls to lr/10; 0: it stays"))
    keep: bool = field(default=False, metadata=doc("keep the inner optimizer's state on the device between rounds"))
    outer: Literal["nesterov", "fedavgm", "fedavg", "fedadam", "fedyogi"] = field(
        default="nesterov", metadata=doc("the server's step", "nesterov", "fedavgm", "fedavg", "fedadam", "fedyogi")
    )
    outer_lr: float = field(default=0.7, metadata=doc("η of the server's step"))
    outer_momentum: float = field(default=0.7, metadata=doc("m of the server's step"))

    card: ClassVar[Card] = Card(
        name="Photon (federated LLM pre-training)",
        summary="many local AdamW steps a round, Nesterov momentum over the averaged change of the whole model",
        paper="Sani et al. 2024, arXiv 2405.10853 and 2411.02908; DiLoCo: Douillard et al. 2023, arXiv 2311.08105",
        stages=("train",),
        path="train/entire",
        leaves=("the change of every trained weight", "number of rows"),
        stars=(1, 2, 2),
        deviations=(
            "AdamW where the release has ADOPT",
            "rows come in a fresh order each round; no cursor into the data is kept",
            "one process a device; the survey's DDP within a client is not built",
            "fedadam and fedyogi without bias correction",
            "the release has 500 local batches a round, a warm-up of 100 and a horizon of 4800",
        ),
        tasks=("causal-lm", "masked-lm"),
        alternatives=("fedavg", "lora"),
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.clip, self.warmup, self.horizon) < 0 or self.outer_lr <= 0 or not 0 <= self.outer_momentum < 1:
            raise ValueError("clip, warmup and horizon are 0 or more, outer_lr above 0, outer_momentum in [0, 1)")
        if self.keep and self.optimizer != "adamw":
            raise ValueError("keep: the inner optimizer whose state is kept is adamw")

    def variants(self) -> Sequence[Method]:
        plain, lean, *shallow = super().variants()
        return [plain, lean, replace(lean, checkpointing=True), *shallow]  # type: ignore[type-var]

    def init(self, srv: Server) -> State:
        if srv.optimizer != ServerOptimizer():
            raise MethodError(
                "photon has a server optimizer of its own", hint="leave 'server' out; outer, outer_lr, outer_momentum"
            )
        return super().init(srv)

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        start = self.enter(dev, down)
        parameters = trainable(dev.model)
        optimizer = self.local_optimizer(parameters.values())
        if self.optimizer == "adamw":
            optimizer.param_groups[0]["betas"] = (0.9, self.beta2)
        if self.keep:
            take_up(optimizer, parameters, dev.state)
        fitted = fit(
            dev.model,
            dev.data.batches(self.batch, dev.generator("batches")),
            loss=dev.task.loss,
            optimizer=optimizer,
            steps=self.steps,
            micro_batch=self.micro_batch,
            after_backward=self.before_step(optimizer, dev.round * self.steps),
            spans=dev.meter,
        )
        dev.meter.count("loss", fitted.loss)
        if self.keep:
            dev.state["inner"] = left(optimizer, parameters)
        return leave(dev, start)

    def before_step(self, optimizer: torch.optim.Optimizer, first: int) -> Callable[[nn.Module], None]:
        """What happens before each step of the optimizer: clip, and set the rate of the step's place in the stage."""
        place = first

        def prepare(model: nn.Module) -> None:
            nonlocal place
            if self.clip:
                nn.utils.clip_grad_norm_(trainable(model).values(), self.clip)
            for group in optimizer.param_groups:
                group["lr"] = self.rate(place)
            place += 1

        return prepare

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0 over all rounds."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if not self.horizon:
            return self.lr
        done = min(1.0, (step - self.warmup) / max(1, self.horizon - self.warmup))
        return self.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        outer = ServerOptimizer(self.outer, lr=self.outer_lr, momentum=self.outer_momentum)
        return average(srv, state, replies, optimizer=outer)


def take_up(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], state: State) -> None:
    """Give a fresh optimizer what ``left`` had taken from the one of the last round, where there was one."""
    for name, kept in state.get("inner", {}).items():
        optimizer.state[parameters[name]] = dict(kept)


def left(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tree]:
    """The optimizer's state by parameter name."""
    held = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
    return {name: {part: one[part] for part in _KEPT} for name, one in held.items() if one}
