"""FedOBD: only the blocks that moved most are sent, rounded, within a budget (Chen et al. 2023, arXiv 2208.05174).

Blocks are the transformer's layers, what lies before them, and the head. A device ranks them by ``‖w_b − w_b'‖₂ / |b|``
(w' as the round began) and takes, from the top, each that still fits into ``(1 − drop)`` of all weights. Changes of the
chosen go up through NNADQ; what comes down is the change since the stage began, of every block that changed, in the
same form. From round ``second`` on nothing is dropped, and devices take a fifth of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import nn

from fedge.codecs.byhand import decoded, encoded
from fedge.codecs.codec import Codec
from fedge.codecs.nnadq import NNADQ
from fedge.codecs.qsgd import QSGD
from fedge.core.fold import Coverage
from fedge.core.method import Card, Device, Method, Replies, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.core.traced import is_traced
from fedge.errors import ProtocolError
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.tuning import doc, leave
from fedge.models.anatomy import anatomy, is_known
from fedge.models.names import attach, tensors, trainable

#: Levels of QSGD in the survey's reading.
_LEVELS = 255


@dataclass(frozen=True, kw_only=True)
class FedOBD(FedAvg):
    """All devices train all weights; the bytes fall by the budget, and by about four through rounding."""

    drop: float = field(default=0.3, metadata=doc("share of the weights that need not be sent"))
    beta: float = field(default=1e-3, metadata=doc("NNADQ's weight of error against length; 1e-4 for text models"))
    second: int = field(default=0, metadata=doc("round from which nothing is dropped and steps are few; 0: none"))
    reading: Literal["paper", "survey"] = field(
        default="paper", metadata=doc("rounding to nearest, or as the survey has it at random", "paper", "survey")
    )

    card: ClassVar[Card] = replace(
        FedAvg.card,
        name="FedOBD (opportunistic block dropout)",
        summary="the blocks that moved most go up within a budget, rounded to as few levels as their range asks for",
        paper="Chen et al. 2023, arXiv 2208.05174",
        stages=("customize",),
        path="customize/hybrid",
        leaves=("the rounded change of the blocks that moved most, and which these are", "number of rows"),
        stars=(1, 3, 3),
        deviations=(
            "what comes down is the rounded change since the stage began, so that absent devices end where others are; "
            "the paper sends the change of each round",
            "the survey has stochastic rounding (reading: survey: QSGD of 255 levels) and measures movement between "
            "the last two epochs; built is the paper's, since the round began",
            "where no block fits the budget, the one that moved most is sent all the same",
            "all devices train all weights; variants have fewer rows at once",
        ),
        alternatives=("omc", "flasc"),
        family="own",
        claims=(),
        waives=(("bytes", "which blocks are sent, and at how many levels, depends on what they learn"),),
    )
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.drop < 1 or self.second < 0:
            raise ValueError(f"drop is in [0, 1) and second 0 or more, not {self.drop:g} and {self.second}")
        if self.reading not in ("paper", "survey"):
            raise ValueError(f"reading is paper or survey, not {self.reading!r}")
        _ = self.codec

    @property
    def codec(self) -> Codec:
        """How changes are rounded."""
        return NNADQ(beta=self.beta) if self.reading == "paper" else QSGD(levels=_LEVELS)

    def variants(self) -> Sequence[Method]:
        lean = replace(self, micro_batch=max(1, self.batch // 4))
        return [self, lean, replace(lean, checkpointing=True)]

    def phases(self) -> Sequence[int]:
        return (0, self.second) if self.second else (0,)

    def down(self, srv: Server, state: State, device: str) -> Payload:
        base = tensors(srv.base(), state["changed"])
        moved = {name: state["weights"][name] - tensor for name, tensor in base.items()}
        sent = encoded(self.codec, moved, srv.generator("down")) if moved else {}
        return Payload({"delta": sent}, meta={"blocks": _places(blocks(srv.base(), state["weights"]), moved)})

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        parameters = trainable(dev.model)
        parts = blocks(dev.model, parameters)
        if down["delta"]:
            begun = tensors(dev.model, [name for at in down.meta["blocks"] for name in parts[at]])
            moved = decoded(self.codec, down["delta"], begun)
            with dev.meter.span("load"):
                attach(dev.model, {name: tensor + moved[name] for name, tensor in begun.items()})
        start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        late = bool(self.second) and dev.round >= self.second
        self.train(dev, dev.task.loss, start, steps=-(-self.steps // 5) if late else self.steps)
        change = leave(dev, start)
        drop = 0.0 if late else self.drop
        chosen = sorted(
            select(movement(change["delta"], parts), [_size(change["delta"], part) for part in parts], drop)
        )
        sent = {name: change["delta"][name] for at in chosen for name in parts[at]}
        coded = encoded(self.codec, sent, dev.generator("rounding"))
        return Payload({"delta": coded}, weight=change.weight, meta={"blocks": chosen})

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        weights: Tree = state["weights"]
        parts = blocks(srv.base(), weights)
        coverage = Coverage({name: tensor.shape for name, tensor in weights.items()})
        for reply in replies.values():
            chosen = reply.meta.get("blocks")
            if not isinstance(chosen, list) or not all(isinstance(at, int) and 0 <= at < len(parts) for at in chosen):
                raise ProtocolError("an answer that does not say which blocks it holds")
            like = {name: weights[name] for at in chosen for name in parts[at]}
            coverage.add(reply.weight, decoded(self.codec, reply["delta"], like))
        change, covered = coverage.mean()
        weights, moments = srv.optimizer.step(weights, change, state["moments"], covered)
        changed = {*state["changed"], *change}
        in_order = [name for part in parts for name in part if name in changed]
        return {**state, "weights": weights, "moments": moments, "changed": in_order}


def blocks(model: nn.Module, names: object) -> list[list[str]]:
    """The names of trained tensors by block: before the layers, each layer, after them. By module where unknown."""
    found: dict[str, list[str]] = {}
    parts = anatomy(model) if is_known(model) else None
    for name in names:  # type: ignore[attr-defined]
        if parts is None:
            key = name.rpartition(".")[0]
        elif name.startswith(parts.head_prefixes or ("\0",)):
            key = "head"
        else:
            key = next((prefix for prefix in parts.layer_prefixes if name.startswith(prefix)), "rest")
        found.setdefault(key, []).append(name)
    return list(found.values())


def movement(change: Tree, parts: Sequence[Sequence[str]]) -> list[float]:
    """``‖w_b − w_b'‖₂ / |b|`` of each block; in a plan, which knows no numbers, its size."""
    sizes = [_size(change, part) for part in parts]
    if is_traced(*change.values()):
        return [float(size) for size in sizes]
    norms = [torch.stack([change[name].double().square().sum() for name in part]).sum().sqrt() for part in parts]
    return [float(norm) / size for norm, size in zip(norms, sizes, strict=True)]


def select(importance: Sequence[float], sizes: Sequence[int], drop: float) -> list[int]:
    """The blocks to send: the most important first, each that fits into what is left of ``(1 − drop) Σ sizes``."""
    left = (1 - drop) * sum(sizes) + 1e-9
    order = sorted(range(len(sizes)), key=lambda at: (-importance[at], at))
    chosen = []
    for at in order:
        if sizes[at] <= left:
            chosen.append(at)
            left -= sizes[at]
    return chosen or order[:1]


def _size(tree: Tree, names: Sequence[str]) -> int:
    return sum(tree[name].numel() for name in names)


def _places(parts: Sequence[Sequence[str]], held: Tree) -> list[int]:
    return [at for at, part in enumerate(parts) if part[0] in held]
