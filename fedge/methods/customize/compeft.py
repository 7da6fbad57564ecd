"""ComPEFT: the change of the adapters as signs of one size where it is largest (Yadav et al. 2023, arXiv 2311.13171).

A change τ of adapters and classifier becomes ``α σ(τ) sign(τ)`` at its largest share k, σ over all of τ, and nothing
elsewhere. The places are Golomb-coded gaps, within a few per cent of the entropy; a sign is a bit. That is one upload
of a finished adapter; rounds of it, and what is left out kept for the next (``feedback``), are fedge's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedge.codecs import bits, golomb
from fedge.codecs.largest import how_many
from fedge.core.method import Card, Device, Replies, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.errors import ProtocolError
from fedge.methods.customize.lora import LoRA
from fedge.methods.flat import adapters_and_heads, flat, kept, mean, shapes, unflat
from fedge.methods.tuning import doc, leave
from fedge.models.names import trainable


@dataclass(frozen=True, kw_only=True)
class ComPEFT(LoRA):
    """LoRA whose answers take about ``H(k) + k`` bits a number."""

    density: float = field(default=0.1, metadata=doc("k: share of the trained numbers that is sent, a sign each"))
    alpha_up: float = field(default=1.0, metadata=doc("α: factor of the size that all of them get"))
    size: Literal["std", "mean"] = field(
        default="std", metadata=doc("the size: deviation of all, or mean magnitude of what is sent", "std", "mean")
    )
    feedback: bool = field(default=False, metadata=doc("what is left out is added to the next change; size: mean"))

    card: ClassVar[Card] = replace(
        LoRA.card,
        name="ComPEFT",
        summary="LoRA whose change goes up as signs of one size at Golomb-coded places",
        paper="Yadav et al. 2023, arXiv 2311.13171",
        path="customize/hybrid",
        leaves=("signs and places of the largest changes of adapters and classifier, one size", "number of rows"),
        stars=(2, 3, 3),
        deviations=(
            "every round's change is compressed; the paper compresses a finished adapter once",
            "α is a field; the paper tries several on validation rows",
            "size: mean is sparse ternary compression (arXiv 1903.02891), with feedback as there",
            "devices may train fewer rank slots or only upper blocks; what they leave counts as unchanged",
        ),
        alternatives=("lora", "flasc"),
        family="own",
        claims=(),
        waives=(("bytes", "a Golomb code is as long as its gaps make it; the plan is for the longest"),),
    )
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1 or self.alpha_up <= 0:
            raise ValueError(f"density is a share in (0, 1], alpha_up above 0, not {self.density:g}, {self.alpha_up:g}")
        if self.size not in ("std", "mean"):
            raise ValueError(f"size is std or mean, not {self.size!r}")
        if self.feedback and (self.size, self.alpha_up) != ("mean", 1.0):
            raise ValueError("feedback needs size: mean and alpha_up: 1; others may send more than there is")

    def init(self, srv: Server) -> State:
        weights = {name: tensor.detach().clone() for name, tensor in adapters_and_heads(srv.model()).items()}
        return {"weights": weights, "changed": [], "moments": {}}

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        start = self.enter(dev, down)
        self.train(dev, dev.task.loss, start)
        of = shapes(adapters_and_heads(dev.model))
        trained = sum(parameter.numel() for parameter in trainable(dev.model).values())
        change = leave(dev, start)
        vector = flat(change["delta"], of)
        if self.feedback:
            vector = vector + dev.state.get("left", torch.zeros(()))
        sent, read = self.packed(vector, trained)
        if self.feedback:
            dev.state["left"] = vector - read
        return Payload({"delta": sent}, weight=change.weight, meta={"count": how_many(self.density, trained)})

    def packed(self, vector: Tensor, trained: int) -> tuple[Tree, Tensor]:
        """A change as it travels, and as it is read."""
        places = kept(vector, self.density, trained)
        values = vector[places]
        # untrained places are zero and count for nothing in the deviation
        spread = (vector.square().sum() / trained - (vector.sum() / trained).square()).clamp_min(0).sqrt()
        size = self.alpha_up * (spread if self.size == "std" else values.abs().mean())
        sent = {
            "places": golomb.encode(places, len(vector)),
            "signs": bits.pack(values < 0, 1),
            "size": size.reshape(1),
        }
        return sent, torch.zeros_like(vector).index_copy(0, places, torch.where(values < 0, -size, size))

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        weights: Tree = state["weights"]
        of = shapes(weights)
        size = sum(shape.numel() for shape in of.values())
        change = unflat(mean(((reply.weight, unpacked(reply, size)) for reply in replies.values()), size), of)
        weights, moments = srv.optimizer.step(weights, change, state["moments"])
        return {**state, "weights": weights, "moments": moments, "changed": sorted(weights)}


def unpacked(reply: Payload, size: int) -> Tensor:
    """The change that a device sent, ``[size]``. ProtocolError for what no device can have packed."""
    count, sent = reply.meta.get("count"), reply["delta"]
    if not isinstance(count, int) or not 0 < count <= size or set(sent) != {"places", "signs", "size"}:
        raise ProtocolError("an answer that is no change of signs and places")
    if len(sent["signs"]) != bits.nbytes(count, 1) or sent["size"].shape != (1,):
        raise ProtocolError(f"{len(sent['signs'])} bytes of signs for {count} places")
    places = golomb.decode(sent["places"], count, size)
    signs = 1 - 2 * bits.unpack(sent["signs"], 1, count)
    return torch.zeros(size).index_copy(0, places, signs * sent["size"])
