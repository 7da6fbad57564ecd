"""What the methods with exits share: a device trains the blocks and exits that it reaches, and holds no others.

A variant stops at a shallower exit (``deepest``), so which depth a device has follows from its budget by the planner's
choice. Its model is the global one cut there; it downloads, trains and sends those tensors alone, and a tensor becomes
the mean over the devices that reach so deep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from math import exp
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.core.fields import doc
from fedge.core.fit import Batch
from fedge.core.method import Device, Method, Server, State
from fedge.core.payload import Payload
from fedge.core.task import IGNORE, Task
from fedge.methods.tuning import Tuning, checkpoint, enter, leave
from fedge.models.anatomy import anatomy
from fedge.models.exits import HEADS, Form, MultiExit, held

#: The loss of one batch from its exits' logits, shallowest first.
ExitsLoss = Callable[[Sequence[Tensor], Batch], Tensor]


@dataclass(frozen=True, kw_only=True)
class Exits(Tuning):
    """Exits after the blocks ``exits`` (counted from 1); the variants stop at a shallower one."""

    exits: tuple[int, ...] = field(default=(2, 4, 6), metadata=doc("blocks after which there is an exit"))
    deepest: int | None = field(default=None, metadata=doc("the last exit that this device holds"))
    backbone: bool = field(default=False, metadata=doc("train the blocks up to the device's last exit too"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.exits or list(self.exits) != sorted(set(self.exits)) or self.exits[0] < 1:
            raise ValueError(f"exits are rising block numbers from 1, not {list(self.exits)}")
        if self.depth != 1:
            raise ValueError("methods with exits train from the input on; give 'deepest' instead of 'depth'")

    @property
    def form(self) -> Form:
        """What an exit is made of."""
        return HEADS

    def variants(self) -> Sequence[Method]:
        small = max(1, self.batch // 4)
        rungs = [replace(self, deepest=depth) for depth in (None, *reversed(self.exits))]
        return [rungs[0], *(replace(rung, micro_batch=small) for rung in rungs)]

    def build(self, base: nn.Module) -> nn.Module:
        model = self.shortened(self.whole(base))
        trained = self.trained(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(trained))
        if self.checkpointing:
            checkpoint(model)
        return model

    def leaving_at(self, depth: int) -> Exits:
        """This method as a device of a depth has it; its fields are not checked again."""
        other = copy(self)
        object.__setattr__(other, "deepest", depth)
        return other

    def whole(self, base: nn.Module) -> MultiExit:
        """The base with all exits."""
        if isinstance(base, MultiExit):
            return base
        parts = anatomy(base)  # says which model cannot be cut, before anything of it is asked for
        config: Any = base.config
        classes = config.vocab_size if parts.per_token else config.num_labels
        return MultiExit(base, self.exits, int(classes), form=self.form)

    def shortened(self, model: MultiExit) -> MultiExit:
        """What a device of this variant holds of it."""
        return model if self.deepest is None else model.cut(self.deepest)

    def trained(self, model: MultiExit) -> tuple[str, ...]:
        """What the names of the trained tensors begin with. A language model's embeddings, and so its head, rest."""
        parts = anatomy(model)
        way_out = () if model.headless else parts.norm_prefix if parts.per_token else parts.head_prefixes
        blocks = tuple(parts.layer_prefixes) if self.backbone else ()
        return ("exits.", "accumulator.", *way_out, *blocks)

    def depth_of(self, srv: Server, device: str) -> int | None:
        """The exit at which a device leaves; None at full depth."""
        variant = srv.variants.get(device)
        return variant.deepest if isinstance(variant, Exits) else None

    def down(self, srv: Server, state: State, device: str) -> Payload:
        weights = {name: state["weights"][name] for name in state["changed"]}
        return Payload({"weights": held(weights, srv.base(), self.depth_of(srv, device))})

    def client(self, dev: Device, down: Payload) -> Payload:
        start = enter(dev, down["weights"])
        of_exits = self.loss_for(dev)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return of_exits(model(**dev.task.inputs(batch)), batch)

        self.train(dev, loss, start)
        return leave(dev, start)

    def loss_for(self, dev: Device) -> ExitsLoss:
        """What the device's exits are trained with in this round."""
        return lambda logits, batch: self.exits_loss(dev, logits, batch)

    def exits_loss(self, dev: Device, logits: Sequence[Tensor], batch: Batch) -> Tensor:
        """The plain sum of the exits' losses."""
        return torch.stack([dev.task.loss_of(each, batch["labels"]) for each in logits]).sum()

    def predict(self, model: nn.Module, inputs: Batch) -> Tensor:
        deepest: Tensor = model(**inputs)[-1]
        return deepest


class Lesson:
    """What exits learn from each other on one batch: their logits where a label stands.

    logs: logarithms of the exits' probabilities at a temperature, each ``[n, classes]``.
    """

    def __init__(self, task: Task, logits: Sequence[Tensor], batch: Batch, temperature: float = 1.0):
        pairs = [task.aligned(each, batch["labels"]) for each in logits]
        self.logs = [functional.log_softmax(each / temperature, -1) for each, _ in pairs]
        kept = (pairs[0][1] != IGNORE).to(logits[0].dtype)
        self._weights = kept / kept.sum().clamp_min(1)

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """KL(teacher ‖ student), two of ``logs``, mean over what is labelled; the teacher learns nothing."""
        each = functional.kl_div(student, teacher.detach(), reduction="none", log_target=True).sum(-1)
        return (each * self._weights).sum()


def ramp(round: int, whole: int) -> float:
    """``exp(−5 (1 − min(round, whole) / whole)²)``: .0067 in the first of 300 rounds, 1 at the ramp's end."""
    return exp(-5 * (1 - min(round, whole) / whole) ** 2)
