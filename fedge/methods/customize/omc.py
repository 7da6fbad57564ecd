"""OMC: models kept and sent in a small floating-point format (Yang et al. 2023, ICASSP).

Weight matrices travel both ways as S1EeMm with a fitted line each (``codecs.minifloat``), norms and biases as they are.
A random tenth of the matrices, another one for every device and round, goes up unrounded, so that each gets exact
updates from someone; a tenth goes down so, the same for all of a round. Between its steps a device's matrices hold
numbers of the format: after each step they are rounded again.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import nn

from fedge.codecs.byhand import decoded, encoded
from fedge.codecs.minifloat import MiniFloat, fitted
from fedge.core.fit import fit
from fedge.core.fold import Coverage
from fedge.core.method import Card, Device, Method, Replies, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.errors import ProtocolError
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.tuning import doc, proximal
from fedge.models.names import attach, tensors, trainable


@dataclass(frozen=True, kw_only=True)
class OMC(FedAvg):
    """Full training in S1E3M7: ``0.9 · 11/32 + 0.1``, 59 % less of every matrix each way."""

    optimizer: str = field(default="sgd", metadata=doc("on the device", "adamw", "sgd"))  # type: ignore[assignment]
    lr: float = field(default=0.05, metadata=doc("learning rate on the device"))
    exponent: int = field(default=3, metadata=doc("bits of the exponent"))
    mantissa: int = field(default=7, metadata=doc("bits of the fraction"))
    share: float = field(default=0.9, metadata=doc("share of the matrices that is rounded, drawn by device and round"))

    card: ClassVar[Card] = replace(
        FedAvg.card,
        name="OMC (online model compression)",
        summary="full training of matrices in an eleven-bit floating-point format, sent in it both ways",
        paper="Yang et al. 2023, ICASSP",
        stages=("train", "customize"),
        path="customize/contraction/quantization",
        leaves=("every weight, matrices rounded to few bits", "number of rows"),
        stars=(1, 3, 3),
        deviations=(
            "the device's memory holds the format's numbers as float32: traffic is saved, memory is not",
            "the survey says 32 to 16 bits by a transform at the server and above 60 %; built is the paper's, 59 %",
            "all devices train all weights; variants have fewer rows at once",
        ),
        roles=("weights",),
        alternatives=("fedobd", "lora"),
        family="own",
        claims=(),
        waives=(
            ("bytes", "which tenth of the matrices goes unrounded is drawn for each device and round"),
            ("still", "matrices are rounded to the format even where nothing is trained"),
        ),
    )
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share is in (0, 1], not {self.share:g}")
        _ = self.format

    @property
    def format(self) -> MiniFloat:
        return MiniFloat(exponent=self.exponent, mantissa=self.mantissa)

    def variants(self) -> Sequence[Method]:
        lean = replace(self, micro_batch=max(1, self.batch // 4))
        return [self, lean, replace(lean, checkpointing=True)]

    def down(self, srv: Server, state: State, device: str) -> Payload:
        tree = {name: state["weights"][name] for name in state["changed"]}
        return self.packed(tree, self.exact(tree, srv.generator("exact")))

    def exact(self, tree: Tree, drawn: torch.Generator) -> list[str]:
        """The matrices that go unrounded: as many as the share leaves, drawn anew."""
        matrices = [name for name, tensor in tree.items() if tensor.dim() >= self.format.least]
        count = len(matrices) - round(self.share * len(matrices))
        return sorted(random.Random(drawn.initial_seed()).sample(matrices, count))

    def packed(self, tree: Tree, exact: Collection[str]) -> Payload:
        """Tensors as they travel: matrices in the format, but those that are to be exact, and the rest as it is."""
        if not tree:
            return Payload({"weights": {}})
        rounded = {name: tensor for name, tensor in tree.items() if name not in exact}
        sent = encoded(self.format, rounded, torch.Generator())
        places = [place for place, name in enumerate(tree) if name in exact]
        return Payload({"weights": {**sent, **{name: tree[name] for name in exact}}}, meta={"exact": places})

    def unpacked(self, sent: Payload, like: Tree) -> Tree:
        """The tensors that ``packed`` packed; ``like`` has their names, shapes and types, in order."""
        places, names = sent.meta.get("exact"), list(like)
        if not isinstance(places, list) or not all(isinstance(at, int) and 0 <= at < len(names) for at in places):
            raise ProtocolError("an answer that does not say which matrices are exact")
        exact = {names[at] for at in places}
        found = {name: tensor for name, tensor in sent["weights"].items() if name in exact}
        if set(found) != exact or any(tensor.shape != like[name].shape for name, tensor in found.items()):
            raise ProtocolError("an answer whose exact matrices are not those that it says")
        coded = {name: tensor for name, tensor in sent["weights"].items() if name not in exact}
        found |= decoded(self.format, coded, {name: tensor for name, tensor in like.items() if name not in exact})
        return {name: found[name] for name in names}

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        parameters = trainable(dev.model)
        if down["weights"]:
            with dev.meter.span("load"):
                attach(dev.model, self.unpacked(down, tensors(dev.model, parameters)))
        exact = self.exact(tensors(dev.model, parameters), dev.generator("exact"))
        kept = [p for name, p in parameters.items() if name not in exact and p.dim() >= self.format.least]
        start = {name: parameter.detach().clone() for name, parameter in parameters.items()} if self.prox else {}
        optimizer = self.local_optimizer(parameters.values())
        optimizer.register_step_post_hook(lambda *_: self.keep(kept))
        self.keep(kept)
        fitted = fit(
            dev.model,
            dev.data.batches(self.batch, dev.generator("batches")),
            loss=proximal(dev.task.loss, start, self.prox) if self.prox else dev.task.loss,
            optimizer=optimizer,
            steps=self.steps,
            micro_batch=self.micro_batch,
            spans=dev.meter,
        )
        dev.meter.count("loss", fitted.loss)
        sent = self.packed(tensors(dev.model, parameters), exact)
        return Payload(sent.parts, weight=len(dev.data), meta=sent.meta)

    @torch.no_grad()
    def keep(self, matrices: Sequence[nn.Parameter]) -> None:
        """Round matrices, in place, to what the format with its line can hold."""
        for matrix in matrices:
            numbers = self.format.value(self.format.nearest(matrix.reshape(-1)))
            slope, shift = fitted(matrix.reshape(-1), numbers)
            matrix.copy_((numbers * slope + shift).view_as(matrix))

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        weights: Tree = state["weights"]
        coverage = Coverage({name: tensor.shape for name, tensor in weights.items()})
        for reply in replies.values():
            coverage.add(reply.weight, self.unpacked(reply, weights))
        change = {name: mean - weights[name] for name, mean in coverage.mean()[0].items()}
        weights, moments = srv.optimizer.step(weights, change, state["moments"])
        return {**state, "weights": weights, "moments": moments, "changed": list(weights)}
