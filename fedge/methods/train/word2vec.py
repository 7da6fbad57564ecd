"""Federated Word2Vec: one vocabulary agreed on, then rows of vectors (Garcia Bernal et al. 2021, arXiv 2105.00831).

First each device says which tokens it has most and how often, and the server merges the lists; tokens outside of what
was agreed on are passed over. Then skip-gram with q negatives n_j, drawn by ``(Σ_k count)^0.75`` over the merged list::

    L = − Σ_{|c − o| ≤ window} [ log σ(⟨o_o, u_c⟩) + Σ_j log σ(−⟨o_{n_j}, u_c⟩) ] / (rows · pairs of a row)

by plain SGD. One step a round on one large batch is FederatedSGD: with devices weighted by their batches the mean of
the changes is the step on all batches at once. Only rows that moved travel, with their numbers.

It is longer than other methods because it brings its own model, and two rounds before training agree on its words.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.core.fit import Batch, fit
from fedge.core.method import Ask, Card, Device, Method, Replies, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.core.task import IGNORE
from fedge.core.traced import is_traced
from fedge.errors import MissingError, ProtocolError
from fedge.methods.tuning import doc
from fedge.models.names import load, tensors, trainable
from fedge.models.words import WordVectors

_PARTS = ("u", "o")


@dataclass(frozen=True, kw_only=True)
class Word2Vec(Method):
    """Skip-gram vectors for the tokens of the model's tokenizer; of the base nothing else is used."""

    lr: float = field(
        default=5.0, metadata=doc("learning rate of plain SGD; more with more words, each a smaller part of the mean")
    )
    steps: int = field(default=1, metadata=doc("steps a round; 1 is FederatedSGD, more is Federated Averaging"))
    batch: int = field(default=64, metadata=doc("rows in a step"))
    width: int = field(default=64, metadata=doc("length of a vector"))
    window: int = field(default=5, metadata=doc("how far from a token its context reaches"))
    negatives: int = field(default=5, metadata=doc("q: tokens drawn against each pair"))
    words: int = field(default=2000, metadata=doc("tokens that a device puts forward, its most frequent"))
    merge: Literal["union", "intersection"] = field(
        default="union", metadata=doc("how the lists become one vocabulary", "union", "intersection")
    )

    card: ClassVar[Card] = Card(
        name="Federated Word2Vec",
        summary="devices agree on a vocabulary, then train skip-gram vectors; only rows that moved travel",
        paper="Garcia Bernal et al. 2021, arXiv 2105.00831",
        stages=("train",),
        path="train/entire",
        leaves=("the most frequent tokens and how often each occurs", "the rows of vectors that moved, and which"),
        stars=(1, 1, 1),
        deviations=(
            "the words are the tokens of the model's tokenizer; the paper's are words, sent as strings",
            "q negatives for each pair; the release has noise-contrastive estimation with 64",
            "frequent words are not thinned out",
            "judged as a language model that sees one token; what the vectors are for, nearness, no stage measures",
        ),
        tasks=("causal-lm",),
        alternatives=("photon",),
        roles=("statistics", "delta"),
        final="own",
        waives=(("bytes", "as many rows travel as the batches touch; the plan is for as many as they might"),),
    )

    def __post_init__(self) -> None:
        for name in ("lr", "steps", "batch", "width", "window", "negatives", "words"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.merge not in ("union", "intersection"):
            raise ValueError(f"merge is union or intersection, not {self.merge!r}")

    def variants(self) -> Sequence[Method]:
        return [self, replace(self, batch=max(1, self.batch // 4))]

    def phases(self) -> Sequence[int]:
        return (0, 1)

    def build(self, base: nn.Module) -> nn.Module:
        vocabulary = getattr(getattr(base, "config", None), "vocab_size", None)
        if not isinstance(vocabulary, int):
            raise MissingError(
                f"how many tokens a {type(base).__name__} knows is not told",
                hint="word2vec takes its words from the model's tokenizer: a model whose config has vocab_size",
            )
        return WordVectors(vocabulary, self.width)

    def init(self, srv: Server) -> State:
        vectors = {name: tensor.detach().clone() for name, tensor in tensors(srv.model()).items()}
        none = torch.zeros(srv.task.classes)
        return {"vectors": vectors, "moved": torch.zeros(srv.task.classes, dtype=torch.bool), "counts": none}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        counts: Tensor = state["counts"]
        words = torch.arange(len(counts)) if is_traced(counts) else (counts > 0).nonzero().flatten()
        vocabulary = {"words": words.to(torch.int32), "counts": counts[words]}
        return Payload({"statistics": vocabulary, "weights": picked(state["vectors"], state["moved"])})

    def round(self, srv: Server, state: State) -> Generator[Ask, Replies, State]:
        if not srv.round or not state.get("agreed", False):
            lists = yield Ask({device: Payload({"statistics": {}}) for device in srv.cohort})
            if not lists:
                return state
            state = {**state, "counts": self.merged(srv.task.classes, lists), "agreed": True}
            replies = yield Ask({device: self.down(srv, state, device) for device in lists})
        else:
            replies = yield Ask({device: self.down(srv, state, device) for device in srv.cohort})
        return self.update(srv, state, replies) if replies else state

    def merged(self, classes: int, lists: Replies) -> Tensor:
        """How often each token of the vocabulary occurs on all devices, ``[classes]``; 0 for those left out."""
        total, holders = torch.zeros(classes), torch.zeros(classes)
        for reply in lists.values():
            words, counts = reply["statistics"]["words"].long(), reply["statistics"]["counts"]
            total = total.index_add(0, words, counts)
            holders = holders.index_add(0, words, (counts > 0).to(counts.dtype))
        return total if self.merge == "union" else total * (holders == len(lists))

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        if "words" in down["statistics"]:
            return self.learn(dev, down)
        return self.introduced(dev)

    def introduced(self, dev: Device) -> Talk:
        """Say which tokens there are; then learn with the vocabulary that was agreed on."""
        counts = torch.zeros(dev.task.classes)
        for chunk in dev.data.chunks(self.batch):
            ids, kept = chunk["input_ids"].flatten(), (chunk["labels"] != IGNORE).flatten()
            counts = counts.index_add(0, ids, kept.to(counts.dtype))
        most = torch.sort(counts, descending=True, stable=True).indices[: self.words]
        listed = {"words": most.to(torch.int32), "counts": counts[most]}
        down = yield Payload({"statistics": listed}, weight=len(dev.data))
        return self.learn(dev, down)

    def learn(self, dev: Device, down: Payload) -> Payload:
        start = {name: tensor.detach().clone() for name, tensor in put(dev.model, down["weights"]).items()}
        counts = torch.zeros(dev.task.classes)
        counts = counts.index_copy(0, down["statistics"]["words"].long(), down["statistics"]["counts"])
        fitted = fit(
            dev.model,
            dev.data.batches(self.batch, dev.generator("batches")),
            loss=self.loss(counts, dev.generator("negatives")),
            optimizer=torch.optim.SGD(trainable(dev.model).values(), lr=self.lr),
            steps=self.steps,
            spans=dev.meter,
        )
        dev.meter.count("loss", fitted.loss)
        change = {name: tensor - start[name] for name, tensor in tensors(dev.model).items()}
        moved = torch.stack([(tensor != 0).any(1) for tensor in change.values()]).any(0)
        return Payload({"delta": picked(change, moved)}, weight=min(self.batch, len(dev.data)))

    def loss(self, counts: Tensor, drawn: torch.Generator) -> Callable[[nn.Module, Batch], Tensor]:
        """The skip-gram loss of a batch of windows ``input_ids [rows, tokens]`` over the tokens that are counted."""
        chance = counts.pow(0.75).cumsum(0)
        known = counts > 0

        def of(model: nn.Module, batch: Batch) -> Tensor:
            ids = batch["input_ids"]
            centre, context = pairs(ids, min(self.window, ids.shape[1] - 1))
            both = known[centre] & known[context]
            spots = torch.rand((*centre.shape, self.negatives), generator=drawn) * chance[-1]
            against = torch.searchsorted(chance, spots).clamp_max(len(counts) - 1)
            u = model.u[centre]  # type: ignore[index]
            right = functional.logsigmoid((model.o[context] * u).sum(-1))  # type: ignore[index]
            wrong = functional.logsigmoid(-(model.o[against] * u.unsqueeze(-2)).sum(-1)).sum(-1)  # type: ignore[index]
            return -torch.where(both, right + wrong, 0.0).mean()

        return of

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        vectors = {name: tensor.double() for name, tensor in state["vectors"].items()}
        total = sum(reply.weight for reply in replies.values())
        moved = state["moved"].clone()
        for reply in replies.values():
            words = rows_of(reply["delta"], srv.task.classes)
            for name in _PARTS:
                change = reply["delta"][name].double() * (reply.weight / total)
                vectors[name] = vectors[name].index_add(0, words, change)
            moved[words] = True
        return {**state, "vectors": {name: tensor.float() for name, tensor in vectors.items()}, "moved": moved}

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.model()
        load(model, state["vectors"])
        return model


def pairs(ids: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Every token beside every other within ``window`` of it: centres and contexts ``[rows, pairs]``."""
    left = [ids[:, :-far] for far in range(1, window + 1)]
    right = [ids[:, far:] for far in range(1, window + 1)]
    return torch.cat([*left, *right], dim=1), torch.cat([*right, *left], dim=1)


def picked(vectors: Tree, moved: Tensor) -> Tree:
    """The rows that moved, and which they are; of a plan, all of them."""
    words = torch.arange(len(moved)) if is_traced(moved) else moved.nonzero().flatten()
    return {"rows": words.to(torch.int32), **{name: vectors[name][words] for name in _PARTS}}


def put(model: nn.Module, sent: Tree) -> Tree:
    """Write rows that were sent into a model of word vectors; returns its tensors."""
    held = tensors(model)
    with torch.no_grad():
        for name in _PARTS:
            held[name].index_copy_(0, sent["rows"].long(), sent[name])
    return held


def rows_of(sent: Tree, classes: int) -> Tensor:
    """The rows that an answer holds, int64. ProtocolError where there are no such."""
    words = sent.get("rows")
    if words is None or any(name not in sent or len(sent[name]) != len(words) for name in _PARTS):
        raise ProtocolError("an answer without rows of vectors")
    if len(words) and not is_traced(words) and not (int(words.min()) >= 0 and int(words.max()) < classes):
        raise ProtocolError(f"a row outside of the {classes} tokens")
    return words.long()
