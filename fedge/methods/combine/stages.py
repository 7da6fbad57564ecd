"""Methods one after another within one stage: so many rounds of the first, then of the second (a head start, say).

What one part has trained stays when the next begins, because all parts train tensors of one global function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import nn

from fedge.core.method import Card, Device, Method, Replies, Server, State, Talk
from fedge.core.payload import Payload
from fedge.methods.make import make
from fedge.methods.tuning import Tuning, average, doc, start_of
from fedge.models.lora import factors, merge
from fedge.models.names import load


@dataclass(frozen=True, kw_only=True)
class Stages(Method):
    """``of`` names the parts in order, ``switch`` the rounds at which the second, third, … begin."""

    of: tuple[str | Tuning, ...] = field(default=("head", "lora"), metadata=doc("methods in their order"))
    switch: tuple[int, ...] = field(default=(2,), metadata=doc("round at which each further method begins"))
    steps: int | None = field(default=None, metadata=doc("optimizer steps a round, for every part"))
    batch: int | None = field(default=None, metadata=doc("rows in a step, for every part"))

    card: ClassVar[Card] = Card(
        name="Stages",
        summary="methods one after another in one stage, each going on from what the last one left",
        paper="a combination of the parts; head start as in Legate et al. 2024's two stages",
        stages=("customize", "train"),
        path="combine",
        leaves=("what the parts' cards say",),
        deviations=("not a published method",),
        family="own",
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        given = {k: v for k, v in (("steps", self.steps), ("batch", self.batch)) if v is not None}
        parts = tuple(make(part, given) if isinstance(part, str) else part for part in self.of)
        for part in parts:
            if not isinstance(part, Tuning) or part.card.family != "tensors":
                raise ValueError(f"'{part.card.name}' does not train tensors of one model: no part of stages")
        if len(self.switch) != len(parts) - 1 or list(self.switch) != sorted(set(self.switch)):
            raise ValueError(f"{len(parts)} methods need {len(parts) - 1} rising rounds in 'switch'")
        object.__setattr__(self, "of", parts)
        if any(part.card.final != "plain" for part in parts):
            object.__setattr__(self, "card", replace(type(self).card, final="extended"))

    @property
    def parts(self) -> tuple[Tuning, ...]:
        return tuple(part for part in self.of if isinstance(part, Tuning))

    def part_at(self, round: int) -> Tuning:
        """The part whose turn it is."""
        return self.parts[sum(round >= start for start in self.switch)]

    def variants(self) -> Sequence[Method]:
        ladders = [part.variants() for part in self.parts]
        rungs = max(len(ladder) for ladder in ladders)
        return [replace(self, of=tuple(ladder[min(i, len(ladder) - 1)] for ladder in ladders)) for i in range(rungs)]

    def phases(self) -> Sequence[int]:
        return (0, *self.switch)

    def working(self, round: int) -> Method:
        return self.part_at(round)

    def build(self, base: nn.Module) -> nn.Module:
        for part in self.parts:
            base = part.build(base)
        trained: set[int] = set()
        for part in self.parts:
            part.build(base)
            trained |= {id(parameter) for parameter in base.parameters() if parameter.requires_grad}
        for parameter in base.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        return base

    def init(self, srv: Server) -> State:
        return {"weights": start_of(srv.model()), "changed": [], "moments": {}}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        return self.parts[0].down(srv, state, device)

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        part = self.part_at(dev.round)
        part.build(dev.model)
        return part.client(dev, down)

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        return average(srv, state, replies)

    def final(self, srv: Server, state: State) -> nn.Module:
        return merge(self._trained(srv, state))

    def adapter(self, srv: Server, state: State) -> nn.Module | None:
        model = self._trained(srv, state)
        return model if factors(model) and self.card.final == "plain" else None

    def _trained(self, srv: Server, state: State) -> nn.Module:
        model = srv.model()
        load(model, state["weights"])
        return model
