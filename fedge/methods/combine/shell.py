"""A method around another: the inner one trains as it always does, the outer one changes what passes in between.

The outer method takes in a turn's replies and hands the inner one other replies: one whose sum is all that they say,
which is enough for a ``linear`` method. Its state holds the inner one's under ``inner``.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedge.core.fit import Batch
from fedge.core.method import Ask, Card, Device, Method, Replies, Server, State, Talk
from fedge.core.payload import Payload, Tree


@dataclass(frozen=True, kw_only=True)
class Shell(Method):
    """Everything is the inner method's, but for what a subclass changes of ``client``, ``ask`` and ``combine``."""

    inner: Method

    @property
    def card(self) -> Card:  # type: ignore[override]
        return self.inner.card

    def variants(self) -> Sequence[Method]:
        return [replace(self, inner=variant) for variant in self.inner.variants()]

    def phases(self) -> Sequence[int]:
        return self.inner.phases()

    def working(self, round: int) -> Method:
        return self.inner.working(round)

    def everyone(self) -> Sequence[Method]:
        return [replace(self, inner=member) for member in self.inner.everyone()]

    def build(self, base: nn.Module) -> nn.Module:
        return self.inner.build(base)

    def init(self, srv: Server) -> State:
        return {"inner": self.inner.init(within(srv))}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        return self.inner.down(within(srv), state["inner"], device)

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        return self.inner.client(dev, down)

    def ask(self, srv: Server, state: State, ask: Ask) -> Generator[Ask, Replies, Replies]:
        """Put the inner method's question; returns the answers that came."""
        replies = yield ask
        return replies

    def combine(self, srv: Server, state: State, replies: Replies) -> tuple[State, Replies]:
        """What the inner method is to see of the answers, and the outer method's own state after them."""
        return state, replies

    def round(self, srv: Server, state: State) -> Generator[Ask, Replies, State]:
        talk = self.inner.round(within(srv), state["inner"])
        try:
            ask = next(talk)
            while True:
                replies = yield from self.ask(srv, state, ask)
                state, seen = self.combine(srv, state, replies)
                ask = talk.send(seen)
        except StopIteration as stop:
            return {**state, "inner": stop.value}

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        state, seen = self.combine(srv, state, replies)
        return {**state, "inner": self.inner.update(within(srv), state["inner"], seen)}

    def predict(self, model: nn.Module, inputs: Batch) -> Tensor:
        return self.inner.predict(model, inputs)

    @property
    def personalises(self) -> bool:
        return self.inner.personalises

    def personal(self, dev: Device, down: Payload) -> nn.Module | None:
        return self.inner.personal(dev, down)

    def final(self, srv: Server, state: State) -> nn.Module:
        return self.inner.final(within(srv), state["inner"])

    def adapter(self, srv: Server, state: State) -> nn.Module | None:
        return self.inner.adapter(within(srv), state["inner"])


def bare(method: Method) -> Method:
    """The method that all others are around."""
    return bare(method.inner) if isinstance(method, Shell) else method


class _Within:
    """A server as the inner method sees it: devices' variants are the inner ones."""

    def __init__(self, srv: Server):
        self._srv = srv

    @property
    def variants(self) -> Mapping[str, Method]:
        return {
            name: method.inner if isinstance(method, Shell) else method for name, method in self._srv.variants.items()
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._srv, name)


def within(srv: Server) -> Server:
    """The server for the method one further in."""
    return _Within(srv)  # type: ignore[return-value]


def as_one(parts: Mapping[str, Tree], weight: float, replies: Replies, names: Sequence[str]) -> Replies:
    """Replies of ``names`` that come to one: a mean with all the weight, and for the others nothing.

    A linear method needs no more; who has answered it still sees.
    """
    every = {name: Payload(dict(parts), 0.0 if at else weight) for at, name in enumerate(sorted(names))}
    asked = {name: replies.asked.get(name, 0) for name in every}
    return Replies(every, asked, replies.lost)


#: Role, name and shape of everything that answers may hold, as a state keeps it.
Outline = dict[str, dict[str, list[int]]]


def widened(outline: Outline, parts: Mapping[str, Tree]) -> Outline:
    """The outline with what ``parts`` hold; of a tensor that is sent in part, the larger extent."""
    found = {role: dict(tree) for role, tree in outline.items()}
    for role, tree in parts.items():
        mine = found.setdefault(role, {})
        for name, tensor in tree.items():
            before = mine.get(name, [0] * tensor.dim())
            mine[name] = [max(a, b) for a, b in zip(before, tensor.shape, strict=True)]
    return found


def block(shape: Sequence[int]) -> tuple[slice, ...]:
    """The leading block of a tensor that an answer of this shape covers."""
    return tuple(slice(0, size) for size in shape)


class Sum:
    """The sum of answers over an outline; a coordinate that one doesn't hold counts as zero."""

    def __init__(self, outline: Outline):
        self.parts: dict[str, Tree] = {
            role: {name: torch.zeros(shape) for name, shape in sorted(tree.items())} for role, tree in outline.items()
        }

    def add(self, parts: Mapping[str, Tree], factor: float | Tensor = 1.0) -> None:
        for role, tree in parts.items():
            for name, tensor in tree.items():
                self.parts[role][name][block(tensor.shape)] += tensor * factor
