"""What the self-supervised methods share: an encoder that learns from pairs of views, whose own teacher stays behind.

The base without its classifier is f together with a projection g; where an objective has one, a predictor q follows.
For views x₁, x₂ of a row, ``z = g(f(x))`` and ``p = q(z)``, the objectives are ::

    byol      (2 − 2 cos(p₁, z'₂)) + (2 − 2 cos(p₂, z'₁)), z' by the target: f' ← d f' + (1 − d) f after each step
    simsiam   −½ cos(p₁, sg z₂) − ½ cos(p₂, sg z₁)
    simclr    NT-Xent over the 2 B views, temperature T
    moco      −log e^{z₁·k₂/T} / (e^{z₁·k₂/T} + Σ_queue e^{z₁·n/T}), both ways; k by a key encoder that starts every
              round as f and follows it like a target, n the device's queue of earlier keys

What the stage leaves is the base with the encoder that was learnt under its own untrained head; its figure is that of
the nearest neighbours among the training rows (``card.judged``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.core.fit import Batch, Loss, fit
from fedge.core.method import Device, Method, Server, State
from fedge.core.payload import Payload, Tree
from fedge.data.views import view
from fedge.methods.tuning import Tuning, doc, enter, leave, start_of
from fedge.models.anatomy import anatomy
from fedge.models.features import entering
from fedge.models.names import attach, load, tensors, trainable
from fedge.models.share import share

PROJECTION, PREDICTOR = "projection", "predictor"
OBJECTIVES = ("byol", "simsiam", "simclr", "moco")
#: Of z, p and the target's z of two views, each a pair, the loss.
Objective = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True)
class SelfSupervised(Tuning):
    """Local training on pairs of views; how what is received is met is up to the method (``meet``)."""

    lr: float = field(default=0.032, metadata=doc("learning rate on the device"))
    optimizer: Literal["adamw", "sgd"] = field(default="sgd", metadata=doc("on the device", "adamw", "sgd"))
    momentum: float = field(default=0.9, metadata=doc("of sgd on the device"))
    weight_decay: float = field(default=5e-4, metadata=doc("on the device"))
    batch: int = field(default=64, metadata=doc("rows in a step"))
    decay: float = field(default=0.99, metadata=doc("d: how slowly the target follows; 1 − 5 / steps suits few steps"))
    hidden: int = field(default=128, metadata=doc("numbers inside projection and predictor"))
    width: int = field(default=64, metadata=doc("numbers in a projection"))
    flip: bool = field(default=True, metadata=doc("whether a view may be turned over left to right"))

    #: Methods of several objectives have a field of this name.
    objective = "byol"
    temperature = 0.5
    queue = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.hidden, self.width, self.queue) <= 0 or self.temperature <= 0 or not 0 <= self.decay < 1:
            raise ValueError("hidden, width, queue and temperature are above 0, decay in [0, 1)")
        if self.depth != 1 or self.prox or self.calibrate:
            raise ValueError("the whole encoder is trained, without a pull or labels: depth is 1, prox and calibrate 0")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective is one of {', '.join(OBJECTIVES)}, not {self.objective!r}")

    def variants(self) -> Sequence[Method]:
        if self.objective == "simclr":  # its negatives are the other rows of the step, so fewer at once are others
            return [self, replace(self, checkpointing=True), replace(self, batch=max(2, self.batch // 4))]
        lean = replace(self, micro_batch=max(1, self.batch // 4))
        return [self, lean, replace(lean, checkpointing=True)]

    @property
    def predicts(self) -> bool:
        """Whether the objective has a predictor."""
        return self.objective in ("byol", "simsiam")

    def build(self, base: nn.Module) -> nn.Module:
        inside = anatomy(base).hidden
        if not hasattr(base, PROJECTION):
            base.add_module(PROJECTION, _mlp(inside, self.hidden, self.width))
            if self.predicts:
                base.add_module(PREDICTOR, _mlp(self.width, self.hidden, self.width))
        model = self.mark(base, lambda name, layer: True)
        heads = anatomy(model).head_prefixes
        for name, parameter in model.named_parameters():
            if name.startswith(heads):
                parameter.requires_grad_(False)
        return model

    def client(self, dev: Device, down: Payload) -> Payload:
        received = enter(dev, down["weights"])
        met = self.meet(dev, received)
        # only this objective's target outlives a round; what the device's state holds is not written
        target = {name: tensor.detach().clone() for name, tensor in met.items()} if self.objective == "byol" else {}
        before = start_of(dev.model)
        loss, follow = self.objective_of(dev, target)
        fitted = fit(
            dev.model,
            dev.data.batches(self.batch, dev.generator("batches")),
            loss=loss,
            optimizer=self.local_optimizer(trainable(dev.model).values()),
            steps=self.steps,
            micro_batch=self.micro_batch,
            after_backward=follow,
            spans=dev.meter,
        )
        dev.meter.count("loss", fitted.loss)
        if follow is not None and self.steps:
            follow(dev.model)  # it follows after a step, and is called before the next
        self.part(dev, before, target)
        return leave(dev, received)

    def meet(self, dev: Device, received: Tree) -> Tree:
        """Put the device's model where its training begins; returns the tensors of its target."""
        raise NotImplementedError

    def part(self, dev: Device, before: Tree, target: Tree) -> None:
        """Keep in ``dev.state`` what the next round needs; the model stands where training left it."""
        raise NotImplementedError

    def objective_of(self, dev: Device, target: Tree) -> tuple[Loss, Follow | None]:
        """The loss of a batch, and what makes the target follow."""
        if self.objective == "simclr":
            return self._paired(lambda z, p, t: nt_xent(z[0], z[1], self.temperature)), None
        if self.objective == "simsiam":
            return self._paired(lambda z, p, t: -(_cos(p[0], z[1].detach()) + _cos(p[1], z[0].detach())) / 2), None
        if self.objective == "moco":
            target.update(start_of(dev.model))  # the key encoder starts as the query encoder
        follow = Follow(dev.model, target, self.decay)
        if self.objective == "byol":
            apart = lambda z, p, t: 4 - 2 * _cos(p[0], t[1]) - 2 * _cos(p[1], t[0])  # noqa: E731
            return self._paired(apart, follow), follow
        queue = dev.state.get("queue")
        if queue is None:
            queue = functional.normalize(torch.randn(self.queue, self.width, generator=dev.generator("queue")), dim=-1)
        dev.state["queue"] = queue

        def among(z: Sequence[Tensor], p: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
            held = dev.state["queue"]
            keys = [functional.normalize(key, dim=-1) for key in t]
            found = sum(info_nce(z[i], keys[1 - i], held, self.temperature) for i in (0, 1))
            dev.state["queue"] = torch.cat([*keys, held])[: self.queue]
            return torch.as_tensor(found)

        return self._paired(among, follow), follow

    def _paired(self, of: Objective, follow: Follow | None = None) -> Loss:
        """The loss by z, p and the target's z of two views, each a pair; p and the target's only where there are."""

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            views = [view(batch["pixel_values"], flip=self.flip) for _ in range(2)]
            z = [project(model, images) for images in views]
            p = [model.get_submodule(PREDICTOR)(one) for one in z] if self.predicts else []
            t: list[Tensor] = []
            if follow is not None:
                with torch.no_grad():
                    t = [project(follow.target.eval(), images) for images in views]
            return of(z, p, t)

        return loss

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.copy()
        own = tensors(model)
        load(model, {name: tensor for name, tensor in state["weights"].items() if name in own})
        return model


class Follow:
    """A copy of the encoder that goes after it: ``f' ← d f' + (1 − d) f``, called once between two steps."""

    def __init__(self, model: nn.Module, target: Tree, decay: float):
        self.target = share(model)
        self.tree, self.decay = target, decay
        attach(self.target, target)
        self._begun = False

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        if self._begun:  # the first call is before any step
            online = trainable(model)
            for name, tensor in self.tree.items():
                tensor.mul_(self.decay).add_(online[name], alpha=1 - self.decay)
        self._begun = True


def project(model: nn.Module, images: Tensor) -> Tensor:
    """g(f(x)), ``[rows, width]``."""
    found: Tensor = model.get_submodule(PROJECTION)(entering(model, {"pixel_values": images})[0])
    return found


def nt_xent(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """The mean over all 2 B views i of ``−log e^{s(i, j)/T} / Σ_{k ≠ i} e^{s(i, k)/T}``: s cosine, j the other view."""
    views = functional.normalize(torch.cat([one, other]), dim=-1)
    alike = (views @ views.T / temperature).masked_fill(torch.eye(views.shape[0], dtype=torch.bool), -1e9)
    partner = torch.arange(views.shape[0]).roll(one.shape[0])
    return functional.cross_entropy(alike, partner)


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """``−log e^{q·k/T} / (e^{q·k/T} + Σ_n e^{q·n/T})``, the mean over rows; keys and queue are of unit length."""
    query = functional.normalize(query, dim=-1)
    right = (query * key).sum(-1, keepdim=True)
    logits = torch.cat([right, query @ queue.T], 1) / temperature
    return functional.cross_entropy(logits, torch.zeros(query.shape[0], dtype=torch.int64))


@torch.no_grad()
def moved(before: Tree, after: Mapping[str, Tensor]) -> Tensor:
    """D: the mean over the encoder's weight matrices of how far each went, ``‖W_after − W_before‖₂``; 0-d."""
    names = [n for n, t in before.items() if t.dim() >= 2 and not n.startswith((PROJECTION, PREDICTOR))]
    return torch.stack([torch.linalg.vector_norm(after[name] - before[name]) for name in names]).mean()


def split(tree: Tree) -> tuple[Tree, Tree]:
    """The encoder's tensors (its projection's too), and the predictor's."""
    encoder = {name: tensor for name, tensor in tree.items() if not name.startswith(PREDICTOR)}
    return encoder, {name: tensor for name, tensor in tree.items() if name not in encoder}


def _mlp(inside: int, hidden: int, outside: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inside, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, outside))


def _cos(one: Tensor, other: Tensor) -> Tensor:
    return functional.cosine_similarity(one, other, dim=-1).mean()
