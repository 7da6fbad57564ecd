"""Split training: devices hold the embeddings and the head, the server holds the blocks between.

After FedBERT (Tian et al. 2022, doi 10.1145/3510033), its parallel mode. Each local step is two turns::

    device: h₀ = embed(x)        → server: h_L = blocks(h₀)
    device: ∂loss/∂h_L of head   → server: steps its blocks, returns ∂loss/∂h₀; the device steps embeddings and head

The server keeps a copy of the blocks for each device of the round and averages the copies at its end; the devices'
embeddings and heads are averaged like any weights. Labels never leave the device; activations do.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedge.core.fit import pull
from fedge.core.fold import Coverage
from fedge.core.method import Ask, Card, Device, Method, Replies, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.methods.tuning import doc, enter, leave, start_of
from fedge.models.anatomy import anatomy
from fedge.models.names import load, tensors, trainable


@dataclass(frozen=True, kw_only=True)
class Split(Method):
    """Embeddings and head on the device, blocks on the server, activations and gradients between."""

    lr: float = field(default=1e-3, metadata=doc("learning rate on both sides"))
    steps: int = field(default=4, metadata=doc("steps a round; each is two turns of the conversation"))
    batch: int = field(default=16, metadata=doc("rows in a step"))
    optimizer: Literal["adamw", "sgd"] = field(default="adamw", metadata=doc("on both sides", "adamw", "sgd"))

    card: ClassVar[Card] = Card(
        name="Split training (FedBERT)",
        summary="devices keep embeddings and head, the server keeps the blocks; activations up, gradients down",
        paper="Tian et al. 2022, doi 10.1145/3510033",
        stages=("train", "customize"),
        path="train/partial/selective",
        leaves=("activations after the embeddings and the attention mask", "gradients at the last block", "weights"),
        deviations=(
            "embeddings, head and blocks are averaged every round; the release averages every 5 to 50 epochs",
            "the attention mask travels with the activations, so the server learns text lengths",
        ),
        tasks=("image-classification", "text-classification", "causal-lm", "masked-lm"),
        roles=("activations", "gradients", "delta"),
    )

    def variants(self) -> Sequence[Method]:
        return [self, replace(self, batch=max(1, self.batch // 4))]

    def build(self, base: nn.Module) -> nn.Module:
        parts = anatomy(base)
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(parts.layer_prefixes)))
        del parts.layers[:]  # type: ignore[attr-defined]
        return base

    def init(self, srv: Server) -> State:
        blocks = _blocks(srv)
        return {"device": start_of(srv.model()), "blocks": start_of(blocks), "changed": False}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        return Payload({"weights": state["device"] if state["changed"] else {}})

    def client(self, dev: Device, down: Payload) -> Talk:
        start = enter(dev, down["weights"])
        parts = anatomy(dev.model)
        optimizer = self.local_optimizer(trainable(dev.model).values())
        dev.model.train()
        for batch in islice(dev.data.batches(self.batch, dev.generator("batches")), self.steps):
            inputs = dev.task.inputs(batch)
            with dev.meter.span("forward"):
                embedded = parts.embed(inputs)
            mask = {"mask": inputs["attention_mask"]} if "attention_mask" in inputs else {}
            reply = yield Payload({"activations": {"h": embedded.detach(), **mask}})
            top = reply["activations"]["h"].clone().requires_grad_()
            with dev.meter.span("forward"):
                loss = dev.task.loss_of(parts.head(parts.pool(parts.finish(top), inputs)), batch["labels"])
            with dev.meter.span("backward"):
                pull([loss], [torch.ones_like(loss)])
            dev.meter.count("loss", loss.detach())
            assert top.grad is not None
            reply = yield Payload({"gradients": {"h": top.grad}})
            with dev.meter.span("backward"):
                pull([embedded], [reply["gradients"]["h"].clone()])
            optimizer.step()
            optimizer.zero_grad()
        return leave(dev, start)

    def round(self, srv: Server, state: State) -> Generator[Ask, Replies, State]:
        trunks: dict[str, nn.Module] = {}
        optimizers = {}
        replies = yield Ask({device: self.down(srv, state, device) for device in srv.cohort})
        for device in replies:
            trunks[device] = _blocks(srv)
            load(trunks[device], state["blocks"])
            optimizers[device] = self.local_optimizer(trainable(trunks[device]).values())
        for _ in range(self.steps):
            held = {device: _through(trunks[device], reply["activations"]) for device, reply in replies.items()}
            replies = yield Ask({d: Payload({"activations": {"h": out.detach()}}) for d, (_, out) in held.items()})
            back: dict[str, Payload] = {}
            for device, reply in replies.items():
                bottom, out = held[device]
                pull([out], [reply["gradients"]["h"].clone()])
                optimizers[device].step()
                optimizers[device].zero_grad()
                assert bottom.grad is not None
                back[device] = Payload({"gradients": {"h": bottom.grad}})
            replies = yield Ask(back)
        return self.fold(state, replies, {d: tensors(trunks[d], state["blocks"]) for d in replies})

    def fold(self, state: State, replies: Replies, trunks: dict[str, Tree]) -> State:
        """Average the devices' changes and the server's copies of the blocks, weighted by rows."""
        if not replies:
            return state
        device = Coverage({name: tensor.shape for name, tensor in state["device"].items()})
        blocks = Coverage({name: tensor.shape for name, tensor in state["blocks"].items()})
        for name, reply in replies.items():
            device.add(reply.weight, reply["delta"])
            blocks.add(reply.weight, trunks[name])
        change = device.mean()[0]
        return {
            "device": {name: tensor + change[name] for name, tensor in state["device"].items()},
            "blocks": blocks.mean()[0],
            "changed": True,
        }

    def local_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr)
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0)

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.copy()
        load(model, {**state["device"], **state["blocks"]})
        return model


def _blocks(srv: Server) -> nn.Module:
    """A copy of the base of which only the blocks are trained: the server's side."""
    model = srv.copy()
    prefixes = tuple(anatomy(model).layer_prefixes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
    return model.train()


def _through(trunk: nn.Module, sent: Tree) -> tuple[Tensor, Tensor]:
    """Run a device's activations through its copy of the blocks; the leaf that went in and what came out."""
    parts = anatomy(trunk)
    bottom = sent["h"].clone().requires_grad_()
    inputs = {"attention_mask": sent["mask"]} if "mask" in sent else {}
    mask = parts.mask(inputs, bottom)
    out = bottom
    for index in range(parts.depth):
        out = parts.block(index, out, mask)
    return bottom, out
