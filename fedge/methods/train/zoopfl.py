"""ZooPFL: a foundation model that answers but shows no gradient, adapted at its input and its output (Lu et al. 2024).

arXiv 2310.05143. Before the black box F stands an autoencoder, behind it a linear head: ``H_k(F(G(E(x), e_k)))``. After
rounds that train E and G to reproduce images, G is frozen and E and the device's vector e_k are trained by gradients
that are estimated coordinate by coordinate, and chained through E exactly::

    ĝ_i = (l(u + μ 1_i) − l(u − μ 1_i)) / 2μ for u = (E(x), e_k);  ∂E ← (∂z/∂θ)ᵀ ĝ_z

at 2 (d_z + d_e) questions to F a row. H_k is trained as usual on what F answers, and stays on the device as e_k does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.core.fit import pull
from fedge.core.method import Card, Device, Method, Server, State
from fedge.core.payload import Payload
from fedge.methods.tuning import Tuning, doc, enter, leave
from fedge.models.features import classifier, features
from fedge.models.names import attach, load, trainable
from fedge.models.rewriter import Rewriter, rewrite

_REWRITER, _DECODER, _EMBEDDING = "rewriter.", "rewriter.decoder.", "rewriter.embedding"


@dataclass(frozen=True, kw_only=True)
class ZooPFL(Tuning):
    """``micro_batch`` is how many questions F is asked at once."""

    lr: float = field(default=1e-3, metadata=doc("learning rate on the device"))
    latent: int = field(default=16, metadata=doc("d_z: numbers in the code of an image"))
    embedding: int = field(default=4, metadata=doc("d_e: numbers in the device's own vector"))
    hidden: int = field(default=128, metadata=doc("width of the autoencoder's inner layers"))
    mu: float = field(default=5e-3, metadata=doc("μ: half the distance over which a slope is taken"))
    pretrain: int = field(default=2, metadata=doc("rounds, at first, in which the autoencoder learns to reproduce"))
    micro_batch: int | None = field(default=256, metadata=doc("rows that the model is asked at once"))
    reading: Literal["paper", "survey"] = field(
        default="paper", metadata=doc("heads stay on the device, or (survey) are averaged too", "paper", "survey")
    )

    card: ClassVar[Card] = Card(
        name="ZooPFL",
        summary="the model is only asked: an autoencoder before it learns without its gradients, a head behind it",
        paper="Lu et al. 2024, arXiv 2310.05143",
        stages=("train", "customize"),
        path="train/partial/additive",
        leaves=("the change of the encoder, at first of the decoder too", "number of rows"),
        stars=(2, 1, 1),
        deviations=(
            "images only; the paper also adapts the word vectors of texts",
            "the autoencoder is two layers each way and sees at most 32 × 32 pixels",
            "the decoder is frozen once the autoencoder reproduces images",
            "what the stage leaves for all has the encoder under the base's untrained head and no device's vector; a "
            "device's own model is its personal one ('reading: survey' averages the heads)",
        ),
        tasks=("image-classification",),
        alternatives=("fedkseed", "head", "fedpcl"),
        final="extended",
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.latent, self.embedding, self.hidden, self.mu) <= 0 or self.pretrain < 0:
            raise ValueError("latent, embedding, hidden and mu are above 0, pretrain at least 0")
        if self.depth != 1 or self.prox or self.calibrate or self.reading not in ("paper", "survey"):
            raise ValueError("depth is 1, prox and calibrate 0, and reading paper or survey")

    def variants(self) -> Sequence[Method]:
        return [self, replace(self, micro_batch=64), replace(self, micro_batch=8)]

    def phases(self) -> Sequence[int]:
        return (0, self.pretrain) if self.pretrain else (0,)

    def build(self, base: nn.Module) -> nn.Module:
        model = rewrite(base, self.latent, self.embedding, self.hidden)
        last = classifier(model)[0]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith((_REWRITER, f"{last}.")))
        return model

    def init(self, srv: Server) -> State:
        state = super().init(srv)
        return {**state, "weights": {n: t for n, t in state["weights"].items() if not self.stays(n)}}

    def stays(self, name: str) -> bool:
        """Whether a trained tensor is the device's own."""
        return name == _EMBEDDING or (self.reading == "paper" and not name.startswith(_REWRITER))

    def client(self, dev: Device, down: Payload) -> Payload:
        start = enter(dev, down["weights"])
        load(dev.model, dev.state.get("own", {}))
        if dev.round < self.pretrain:
            moves = lambda name: name.startswith(_REWRITER) and name != _EMBEDDING  # noqa: E731
            self.reproduce(dev, moves)
        else:
            moves = lambda name: not name.startswith(_DECODER)  # noqa: E731
            self.surgery(dev)
        mine = {n: p.detach().clone() for n, p in trainable(dev.model).items() if self.stays(n)}
        dev.state["own"] = mine
        sent = leave(dev, start)
        return Payload({"delta": {n: t for n, t in sent["delta"].items() if moves(n) and n not in mine}}, sent.weight)

    def reproduce(self, dev: Device, moves: Any) -> None:
        """``‖G(E(x), e) − x‖²`` is made small; the black box takes no part."""
        optimizer = self.local_optimizer([p for n, p in trainable(dev.model).items() if moves(n)])
        for batch in self.batches(dev):
            images = batch["pixel_values"]
            with dev.meter.span("forward"):
                loss = functional.mse_loss(rewriter_of(dev.model)(images), images)
            self.step(dev, optimizer, [loss], [torch.ones_like(loss)])

    def surgery(self, dev: Device) -> None:
        """E and e_k by estimated gradients, H_k by its own."""
        model, rewriter = dev.model.eval(), rewriter_of(dev.model)
        last = classifier(model)[1]
        parameters = [*rewriter.encoder.parameters(), rewriter.embedding, *last.parameters()]
        optimizer = self.local_optimizer(parameters)
        for batch in self.batches(dev):
            with dev.meter.span("forward"):
                z = rewriter.encode(batch["pixel_values"])
                u = torch.cat([z.detach(), rewriter.embedding.detach().expand(z.shape[0], -1)], 1)
                slopes = estimated(lambda codes, model=model: self.ask(model, codes), u, batch["labels"], last, self.mu)
                loss = functional.cross_entropy(last(self.ask(model, u)), batch["labels"])
            dev.meter.count("queries", (2 * u.shape[1] + 1) * u.shape[0])
            own = rewriter.embedding.expand(z.shape[0], -1)
            gradient = slopes / z.shape[0]
            outputs, gradients = [z, own, loss], [*gradient.split([self.latent, self.embedding], 1), torch.ones(())]
            self.step(dev, optimizer, outputs, gradients)

    def batches(self, dev: Device) -> Any:
        return islice(dev.data.batches(self.batch, dev.generator("batches")), self.steps)

    def step(self, dev: Device, optimizer: torch.optim.Optimizer, outputs: list[Tensor], given: list[Tensor]) -> None:
        with dev.meter.span("backward"):
            pull(outputs, given)
        dev.meter.count("loss", outputs[-1].detach())
        optimizer.step()
        dev.model.zero_grad()  # of what rests in this phase too

    @torch.no_grad()
    def ask(self, model: nn.Module, codes: Tensor) -> Tensor:
        """What F answers to ``G(codes)``: what enters its last layer, ``[n, width]``."""
        into, size = classifier(model)[1], self.micro_batch or len(codes)
        inner: nn.Module = model.base  # type: ignore[assignment]
        rewriter = rewriter_of(model)
        return torch.cat([features(inner, {"pixel_values": rewriter.decode(c)}, into) for c in codes.split(size)])

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.model()
        load(model, state["weights"])
        return model.requires_grad_(False)

    def personal(self, dev: Device, down: Payload) -> nn.Module:
        attach(dev.model, down["weights"])
        load(dev.model, dev.state.get("own", {}))
        return dev.model


@torch.no_grad()
def estimated(ask: Any, codes: Tensor, labels: Tensor, head: nn.Module, mu: float) -> Tensor:
    """ĝ: each row's slope of its loss in each coordinate of its code, ``[rows, coordinates]``."""
    rows, width = codes.shape
    aside = mu * torch.eye(width)[:, None]  # [coordinates, 1, coordinates]
    asked = torch.cat([codes + aside, codes - aside]).reshape(-1, width)
    losses = functional.cross_entropy(head(ask(asked)), labels.repeat(2 * width), reduction="none")
    high, low = losses.reshape(2, width, rows)
    return ((high - low) / (2 * mu)).T


def rewriter_of(model: nn.Module) -> Rewriter:
    """The autoencoder before the model."""
    found = model.get_submodule("rewriter")
    assert isinstance(found, Rewriter)
    return found
