"""Several methods side by side in one federation that learn one model (``method: auto``).

Every participant runs the whole current global function and trains a part of it; a tensor becomes the mean over those
who trained it, what nobody trained stays. So methods mix when each of them trains tensors of that one function: the
members must be of the 'tensors' family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from fedge.core.method import Card, Device, Method, Replies, Server, State, Talk
from fedge.core.payload import Payload
from fedge.methods.tuning import Tuning, average, start_of
from fedge.models.lora import merge
from fedge.models.names import attach


@dataclass(frozen=True, kw_only=True)
class Mixed(Method):
    """``members`` are the candidates; ``member`` is the one (in which variant) that this device trains."""

    members: tuple[Tuning, ...]
    member: Tuning | None = None

    card: ClassVar[Card] = Card(
        name="Mixed cohort",
        summary="devices train what they can afford of one global function",
        paper="coverage averaging over the members' tensors; fedge's own combination",
        stages=("customize", "train"),
        path="combine",
        leaves=("what the members' cards say",),
        deviations=("not a published method",),
        family="tensors",
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(member.among_others() for member in self.members))
        if self.member is not None:
            object.__setattr__(self, "member", self.member.among_others())

    def variants(self) -> Sequence[Method]:
        return [replace(self, member=v) for m in self.members for v in m.variants() if isinstance(v, Tuning)]

    @property
    def trains(self) -> Tuning:
        """The member that is trained here: the chosen one, or the first candidate as it was written."""
        return self.member or self.members[0]

    def working(self, round: int) -> Method:
        return self.trains

    def everyone(self) -> Sequence[Method]:
        return [replace(self, member=member) for member in self.members]

    def build(self, base: nn.Module) -> nn.Module:
        # what any member trains is run here; the chosen one comes last, since its build says what is trained
        others = [member for member in self.members if type(member) is not type(self.trains)]
        for member in (*others, self.trains):
            base = member.build(base)
        return base

    def init(self, srv: Server) -> State:
        weights = {}
        for member in self.members:
            weights.update(start_of(srv.model(replace(self, member=member))))
        return {"weights": weights, "changed": [], "moments": {}}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        return self.trains.down(srv, state, device)

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        return self.trains.client(dev, down)

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        return average(srv, state, replies)

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.model()
        attach(model, state["weights"])
        return merge(model)
