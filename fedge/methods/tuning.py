"""What the methods of the 'tensors' family share: local training of some tensors, averaged by name with coverage.

A member says in ``build`` which tensors are trained; everything else follows. The rules of the family:

- ``build`` works in place and may be called again on its own result or on another member's: it adds what is not there
  yet, freezes everything, then marks what it trains. So a model can hold what several members need (``combine/mixed``)
  and change what is trained (``combine/stages``).
- Every device *runs* the whole current global function and *trains* a part of it. It downloads all that has changed
  since the stage began, so a device that missed rounds ends where the others are.
- A tensor becomes the mean over those who trained it, weighted by their rows, and what nobody trained stays
  (``Δ = Σ_{k covers} n_k (w_k − w) / Σ_{k covers} n_k``), then the server optimizer takes its step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import ceil
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedge.core.fields import doc
from fedge.core.fit import Batch, Loss, fit
from fedge.core.fold import Coverage
from fedge.core.method import Device, Method, Replies, Rows, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.core.server import ServerOptimizer
from fedge.core.task import Task, calibrated
from fedge.models.anatomy import anatomy, is_known
from fedge.models.names import attach, load, trainable

#: What the norm after the last block is called in the architectures that have one.
_FINAL_NORMS = ("layernorm.", "ln_f.", "norm.")


@dataclass(frozen=True, kw_only=True)
class Tuning(Method):
    """Local training of the tensors that ``build`` marks, then the mean of the changes."""

    lr: float = field(default=1e-3, metadata=doc("learning rate on the device"))
    steps: int = field(default=8, metadata=doc("optimizer steps a round on the device"))
    batch: int = field(default=16, metadata=doc("rows in a step"))
    micro_batch: int | None = field(default=None, metadata=doc("rows at once; the rest of the step's are accumulated"))
    optimizer: Literal["adamw", "sgd"] = field(default="adamw", metadata=doc("on the device", "adamw", "sgd"))
    momentum: float = field(default=0.0, metadata=doc("of sgd on the device"))
    weight_decay: float = field(default=0.0, metadata=doc("on the device"))
    prox: float = field(default=0.0, metadata=doc("FedProx's mu: pull towards the global weights"))
    calibrate: float = field(
        default=0.0, metadata=doc("tau of calibrated logits: 1 takes a device's own label shares out of its loss")
    )
    checkpointing: bool = field(default=False, metadata=doc("recompute activations instead of keeping them"))
    depth: float = field(default=1.0, metadata=doc("share of the layers, counted from the output, that is trained"))
    length: float = field(default=1.0, metadata=doc("share of each text that this device trains on, from its start"))
    base: Literal["fp32", "bf16"] = field(
        default="fp32", metadata=doc("what this device keeps the matrices in that it does not train", "fp32", "bf16")
    )
    scale_steps: bool = field(
        default=False, metadata=doc("offer slow devices half and a quarter of the steps, and weigh changes by FedNova")
    )
    scale_length: bool = field(default=False, metadata=doc("offer devices the first half of each text"))
    scale_base: bool = field(default=False, metadata=doc("offer devices what is not trained in bf16"))

    def __post_init__(self) -> None:
        for name in ("lr", "steps", "batch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.micro_batch is not None and self.micro_batch <= 0:
            raise ValueError(f"micro_batch must be above 0, not {self.micro_batch}")
        if self.calibrate < 0:
            raise ValueError(f"calibrate is 0 or above, not {self.calibrate}")
        if self.calibrate and self.personalises:
            raise ValueError("calibrate is for one model of all labels, and devices get models of their own: it is 0")
        if not 0 < self.depth <= 1:
            raise ValueError(f"depth is a share of the layers in (0, 1], not {self.depth}")
        if not 0 < self.length <= 1:
            raise ValueError(f"length is a share of each text in (0, 1], not {self.length}")
        if self.base not in ("fp32", "bf16"):
            raise ValueError(f"base is fp32 or bf16, not {self.base!r}")
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer is adamw or sgd, not {self.optimizer!r}")

    def reads(self, rows: Rows) -> Rows:
        return rows if self.length == 1 else rows.cut(self.length)

    def learns(self, task: Task, rows: Rows) -> Task:
        if not self.calibrate:
            return task
        return calibrated(task, (batch["labels"] for batch in rows.chunks(self.batch)), self.calibrate)

    def keeps(self) -> str:
        return self.base

    def among_others(self) -> Tuning:
        """This method as a member of a cohort whose other members train other tensors of the same function."""
        return self

    def init(self, srv: Server) -> State:
        return {"weights": start_of(srv.model()), "changed": [], "moments": {}}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        return Payload({"weights": {name: state["weights"][name] for name in state["changed"]}})

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        start = self.enter(dev, down)
        self.train(dev, dev.task.loss, start)
        return leave(dev, start)

    def enter(self, dev: Device, down: Payload) -> Tree:
        """Put the device where the global model is; returns what its trainable tensors start from, by name."""
        return enter(dev, down["weights"])

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        return average(srv, state, replies)

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.model()
        load(model, state["weights"])
        return model

    def train(self, dev: Device, loss: Loss, start: Tree, rows: Rows | None = None, steps: int | None = None) -> None:
        """Fit the device's model to its rows (or to what stands for them) with this method's numbers.

        ``steps``: others than the method's.
        """
        fitted = fit(
            dev.model,
            (rows or dev.data).batches(self.batch, dev.generator("batches")),
            loss=proximal(loss, start, self.prox) if self.prox else loss,
            optimizer=self.local_optimizer(trainable(dev.model).values()),
            steps=self.steps if steps is None else steps,
            micro_batch=self.micro_batch,
            spans=dev.meter,
        )
        dev.meter.count("loss", fitted.loss)

    def local_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimizer; its state does not outlive the round."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)

    def mark(self, model: nn.Module, trains: Callable[[str, int | None], bool]) -> nn.Module:
        """Freeze ``model`` but for what ``trains(name, layer)`` allows within this variant's depth, and its new head.

        ``layer`` is the index of the block that a parameter lies in, None outside of the blocks. The embeddings are
        trained only at full depth, what no forward pass reads never. A model whose blocks are not known has only its
        full depth: MissingError for less.
        Returns the model.
        """
        if self.depth == 1 and not is_known(model):  # a model of the user's own: all of it is one piece
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(trains(name, None))
            return model
        parts = anatomy(model)
        first = len(parts.layers) - ceil(self.depth * len(parts.layers))
        heads = tuple(prefix for prefix in parts.head_prefixes if "classifier" in prefix or "pooler" in prefix)
        tail = tuple(parts.prefix + name for name in _FINAL_NORMS) + parts.head_prefixes
        for name, parameter in model.named_parameters():
            layer = next((i for i, prefix in enumerate(parts.layer_prefixes) if name.startswith(prefix)), None)
            deep = layer >= first if layer is not None else self.depth == 1 or name.startswith(tail)
            wanted = name.startswith(heads) or (deep and trains(name, layer))
            parameter.requires_grad_(wanted and not name.startswith(parts.idle_prefixes))
        if self.checkpointing:
            checkpoint(model)
        return model


def checkpoint(model: nn.Module) -> None:
    """Let the model's blocks recompute their activations, in place."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.use_cache = False
            module.activation_checkpointing_enable()
            break


def start_of(model: nn.Module) -> Tree:
    """Copies of the trainable tensors by payload name."""
    return {name: parameter.detach().clone() for name, parameter in trainable(model).items()}


def enter(dev: Device, weights: Tree) -> Tree:
    """Put the device where the global model is; returns what its trainable tensors start from, by name.

    A tensor that is trained in part (the first rank slots) starts from the leading block of the full one.
    """
    with dev.meter.span("load"):
        attach(dev.model, weights)
    start = {}
    for name, parameter in trainable(dev.model).items():
        full = weights.get(name, dev.initial[name])
        start[name] = full[tuple(slice(0, size) for size in parameter.shape)]
    return start


@torch.no_grad()
def leave(dev: Device, start: Tree) -> Payload:
    """What the device trained, as change from ``start``, weighted by its rows. The model is used up by this."""
    delta = {name: parameter.detach().sub_(start[name]) for name, parameter in trainable(dev.model).items()}
    return Payload({"delta": delta}, weight=len(dev.data))


def scaled(variants: Sequence[Method]) -> list[Method]:
    """The variants, and after them what ``scale_length``, ``scale_steps`` and ``scale_base`` make of them.

    In the order in which they are preferred where as much is trained: whole texts before half of each, then all steps
    before fewer, then the frozen matrices in fp32 before bf16, then the method's own order (rows at once). Fewer steps
    are offered of every variant; less text and bf16 only of the leanest among those that train the same, since rows at
    once and checkpointing save memory for nothing but time.
    """
    tuned = [variant for variant in variants if isinstance(variant, Tuning)]
    if len(tuned) < len(variants):
        return list(variants)
    leanest = list({replace(v, micro_batch=None, checkpointing=False): v for v in tuned}.values())
    found: list[Method] = []
    for length, share, base in product((1.0, 0.5), (1, 2, 4), ("fp32", "bf16")):
        for v in tuned if (length, base) == (1.0, "fp32") else leanest:
            asked = (length == 1 or v.scale_length) and (share == 1 or v.scale_steps)
            if asked and (base == "fp32" or (v.scale_base and not v.personalises)):
                kept = "bf16" if base == "bf16" else v.base
                found.append(replace(v, length=v.length * length, steps=max(1, v.steps // share), base=kept))
    return list(dict.fromkeys(found))


def pace(srv: Server, replies: Replies) -> dict[str, float]:
    """What each device's change is scaled by when devices take different numbers of steps (FedNova, arXiv 2007.07481).

    ``Δ = τ_eff Σ p_k Δ_k / τ_k`` with ``τ_eff = Σ p_k τ_k``: who takes fewer steps pulls no less towards its own
    optimum. Exact for plain SGD; for AdamW a step counts as a step too. Empty where no device scales its steps.
    """
    picked = {device: srv.variants.get(device) for device in replies}
    working = {device: method.working(srv.round) if method else None for device, method in picked.items()}
    steps = {device: w.steps for device, w in working.items() if isinstance(w, Tuning) and w.scale_steps}
    if len(set(steps.values())) < 2 or len(steps) < len(working):
        return {}
    rows = {device: reply.weight for device, reply in replies.items()}
    effective = sum(rows[device] * steps[device] for device in steps) / sum(rows.values())
    return {device: effective / count for device, count in steps.items()}


def _delta(reply: Payload) -> Tree:
    return reply["delta"]


def average(
    srv: Server,
    state: State,
    replies: Replies,
    scale: Callable[[str], float] = lambda device: 1.0,
    change_of: Callable[[Payload], Tree] = _delta,
    optimizer: ServerOptimizer | None = None,
) -> State:
    """The family's server step.

    ``scale(device)`` weighs a device's change beyond its rows (staleness); ``change_of`` reads the change of each
    tensor out of a reply; ``optimizer`` is the method's own, where it has one (None: the stage's).
    """
    weights: Tree = state["weights"]
    coverage = Coverage({name: tensor.shape for name, tensor in weights.items()})
    paces = pace(srv, replies)
    for device, reply in replies.items():
        share, moved = scale(device) * paces.get(device, 1.0), change_of(reply)
        coverage.add(reply.weight, {n: t * share for n, t in moved.items()} if share != 1 else moved)
    change, covered = coverage.mean()
    weights, moments = (optimizer or srv.optimizer).step(weights, change, state["moments"], covered)
    return {**state, "weights": weights, "moments": moments, "changed": sorted({*state["changed"], *change})}


def proximal(loss: Loss, start: Tree, mu: float) -> Loss:
    """FedProx (arXiv 1812.06127, eq. 2): ``loss + μ/2 ‖w − w_t‖²`` over the trainable tensors."""

    def with_pull(model: nn.Module, batch: Batch) -> Tensor:
        pull = sum(((p - start[name]) ** 2).sum() for name, p in trainable(model).items())
        return loss(model, batch) + mu / 2 * pull

    return with_pull
